-- Version 1. {s} stands for the schema, quoted.
--
-- Rows come and go all the time, so vacuum has to come by number of rows and not by share of the table, and pages keep room
-- for new versions of their rows.

CREATE TABLE {s}.meta (
  one       boolean PRIMARY KEY DEFAULT true CHECK (one),
  version   integer NOT NULL,
  namespace text NOT NULL,
  -- Tells a transaction in another database from one in this.
  identity  text NOT NULL DEFAULT gen_random_uuid()::text
);

CREATE TABLE {s}.queues (
  name text COLLATE "C" NOT NULL,
  dead boolean NOT NULL,
  PRIMARY KEY (name, dead)
);

-- One row for each process that consumes. It holds messages until `expires`, which it moves on.
CREATE TABLE {s}.holders (
  id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  expires timestamptz NOT NULL,
  -- One entry for each subscription; dead letters end with `.dead`.
  queues  text[] NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

CREATE TABLE {s}.messages (
  id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  -- Microseconds since the Unix epoch, by the server's clock.
  due          bigint NOT NULL,
  -- The holder; null if any process may claim the message.
  holder       bigint,
  sent         bigint,
  deliveries   integer NOT NULL DEFAULT 0,
  -- The negative priority: smaller ones are delivered first.
  rank         smallint NOT NULL,
  priority     smallint,
  dead         boolean NOT NULL,
  -- True until its time has come.
  delayed      boolean NOT NULL,
  queue        text COLLATE "C" NOT NULL,
  task         text,
  kind         text,
  content_type text,
  app_id       text,
  headers      bytea,
  body         bytea NOT NULL
) WITH (
  fillfactor = 80,
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
  autovacuum_vacuum_cost_delay = 0,
  toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 5000
);
CREATE INDEX messages_ready ON {s}.messages (queue, dead, rank, due, id) WHERE holder IS NULL AND NOT delayed;
CREATE INDEX messages_delayed ON {s}.messages (due) WHERE delayed;
CREATE INDEX messages_held ON {s}.messages (holder) WHERE holder IS NOT NULL;

-- A version is given out once, so that a record that was deleted and written again is never taken for the old one.
CREATE SEQUENCE {s}.versions CACHE 100;

CREATE TABLE {s}.records (
  version bigint NOT NULL DEFAULT nextval('{s}.versions'),
  expires bigint,
  kind    text COLLATE "C" NOT NULL,
  name    text COLLATE "C" NOT NULL,
  facts   bytea NOT NULL,
  PRIMARY KEY (kind, name)
) WITH (
  fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000,
  autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX records_expire ON {s}.records (expires) WHERE expires IS NOT NULL;

CREATE TABLE {s}.notes (
  at     bigint NOT NULL,
  list   text COLLATE "C" NOT NULL,
  member text COLLATE "C" NOT NULL,
  PRIMARY KEY (list, member)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX notes_order ON {s}.notes (list, at, member);

-- The functions below have the plans that they need also while the tables are new and seem small: a plan that was made for
-- an empty table is kept for as long as its connection lives. Without `jit = off` such a plan, whose cost is beyond all measure,
-- would be compiled at each call.

CREATE FUNCTION {s}.now_micros() RETURNS bigint LANGUAGE sql VOLATILE AS
  $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

CREATE FUNCTION {s}.claim(p_holder bigint, p_queue text, p_dead boolean, p_limit integer)
RETURNS TABLE (id bigint, due bigint, sent bigint, deliveries integer, rank smallint, priority smallint,
               task text, kind text, content_type text, app_id text, headers bytea, body bytea)
LANGUAGE plpgsql VOLATILE
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off
AS $$
#variable_conflict use_column
DECLARE
  picked bigint[];
BEGIN
  IF NOT EXISTS (SELECT 1 FROM {s}.holders h WHERE h.id = p_holder) THEN
    RETURN;
  END IF;
  picked := ARRAY(
    SELECT c.id FROM {s}.messages c
    WHERE c.queue = p_queue AND c.dead = p_dead AND c.holder IS NULL AND NOT c.delayed
    ORDER BY c.rank, c.due, c.id LIMIT p_limit FOR UPDATE SKIP LOCKED
  );
  RETURN QUERY
  UPDATE {s}.messages m SET holder = p_holder, deliveries = m.deliveries + 1 WHERE m.id = ANY (picked)
  RETURNING m.id, m.due, m.sent, m.deliveries, m.rank, m.priority, m.task, m.kind, m.content_type, m.app_id,
            m.headers, m.body;
END $$;

CREATE FUNCTION {s}.settle(p_holder bigint, p_done bigint[], p_back bigint[])
RETURNS void LANGUAGE plpgsql VOLATILE
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
BEGIN
  IF cardinality(p_done) > 0 THEN
    DELETE FROM {s}.messages m WHERE m.id = ANY (p_done) AND m.holder = p_holder;
  END IF;
  IF cardinality(p_back) > 0 THEN
    UPDATE {s}.messages m SET holder = NULL WHERE m.id = ANY (p_back) AND m.holder = p_holder;
  END IF;
END $$;

CREATE FUNCTION {s}.promote(p_limit integer)
RETURNS TABLE (queue text, dead boolean) LANGUAGE plpgsql VOLATILE
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
  picked bigint[];
BEGIN
  picked := ARRAY(
    SELECT c.id FROM {s}.messages c
    WHERE c.delayed AND c.due <= {s}.now_micros() ORDER BY c.due LIMIT p_limit FOR UPDATE SKIP LOCKED
  );
  RETURN QUERY
  UPDATE {s}.messages m SET delayed = false WHERE m.id = ANY (picked) RETURNING m.queue, m.dead;
END $$;

-- Hands back what nobody holds any more. Two statements, so that the second one sees what was claimed while the first one
-- waited.
CREATE FUNCTION {s}.reap()
RETURNS TABLE (queue text, dead boolean) LANGUAGE plpgsql VOLATILE
SET jit = off SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
  DELETE FROM {s}.holders h WHERE h.expires <= clock_timestamp();
  RETURN QUERY
  UPDATE {s}.messages m SET holder = NULL
  WHERE m.holder IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {s}.holders h WHERE h.id = m.holder)
  RETURNING m.queue, m.dead;
END $$;

-- Hands back what a holder holds and does not know.
CREATE FUNCTION {s}.release(p_holder bigint, p_known bigint[])
RETURNS TABLE (queue text, dead boolean) LANGUAGE plpgsql VOLATILE
SET jit = off SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  UPDATE {s}.messages m SET holder = NULL
  WHERE m.holder = p_holder AND NOT EXISTS (SELECT 1 FROM unnest(p_known) AS k (known) WHERE k.known = m.id)
  RETURNING m.queue, m.dead;
END $$;

-- Microseconds until the next delayed message is due; null if there is none.
CREATE FUNCTION {s}.next_due() RETURNS bigint LANGUAGE plpgsql VOLATILE
SET jit = off SET enable_seqscan = off
AS $$
BEGIN
  RETURN (SELECT m.due - {s}.now_micros() FROM {s}.messages m WHERE m.delayed ORDER BY m.due LIMIT 1);
END $$;

-- Counts for each queue: messages that wait, dead letters, and subscriptions. Null where the queue does not exist.
CREATE FUNCTION {s}.depth(p_names text[])
RETURNS TABLE (ready bigint, dead_letters bigint, consumers bigint) LANGUAGE plpgsql VOLATILE
SET jit = off SET enable_seqscan = off
AS $$
BEGIN
  RETURN QUERY
  SELECT
    CASE WHEN EXISTS (SELECT 1 FROM {s}.queues q WHERE q.name = g.g_name AND NOT q.dead) THEN
      (SELECT count(*) FROM {s}.messages m
       WHERE m.queue = g.g_name AND NOT m.dead AND m.holder IS NULL AND NOT m.delayed)
      + (SELECT count(*) FROM {s}.messages m
         WHERE m.delayed AND m.due <= {s}.now_micros() AND m.queue = g.g_name AND NOT m.dead) END,
    CASE WHEN EXISTS (SELECT 1 FROM {s}.queues q WHERE q.name = g.g_name AND q.dead) THEN
      (SELECT count(*) FROM {s}.messages m
       WHERE m.queue = g.g_name AND m.dead AND m.holder IS NULL AND NOT m.delayed) END,
    (SELECT count(*) FROM {s}.holders h, unnest(h.queues) AS c WHERE h.expires > clock_timestamp() AND c = g.g_name)
  FROM unnest(p_names) WITH ORDINALITY AS g (g_name, place) ORDER BY g.place;
END $$;

CREATE FUNCTION {s}.read(p_kinds text[], p_names text[])
RETURNS TABLE (version bigint, expires bigint, facts bytea, now bigint) LANGUAGE plpgsql VOLATILE
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  SELECT r.version, r.expires, r.facts, {s}.now_micros()
  FROM unnest(p_kinds, p_names) WITH ORDINALITY AS g (g_kind, g_name, place)
  LEFT JOIN {s}.records r ON r.kind = g.g_kind AND r.name = g.g_name
  ORDER BY g.place;
END $$;

-- Compare and swap: writes each record whose version is still the given one, null for a record that must not exist. Null
-- facts delete it. Returns the places of those that were written.
CREATE FUNCTION {s}.write(p_kinds text[], p_names text[], p_versions bigint[], p_facts bytea[], p_expires bigint[])
RETURNS TABLE (place bigint) LANGUAGE plpgsql VOLATILE
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  WITH given AS MATERIALIZED (
    SELECT * FROM unnest(p_kinds, p_names, p_versions, p_facts, p_expires) WITH ORDINALITY
      AS g (g_kind, g_name, g_version, g_facts, g_expires, g_place)
  ), updated AS (
    UPDATE {s}.records r SET facts = g_facts, expires = g_expires, version = nextval('{s}.versions') FROM given
    WHERE g_version IS NOT NULL AND g_facts IS NOT NULL
      AND r.kind = g_kind AND r.name = g_name AND r.version = g_version
    RETURNING g_place
  ), deleted AS (
    DELETE FROM {s}.records r USING given
    WHERE g_version IS NOT NULL AND g_facts IS NULL
      AND r.kind = g_kind AND r.name = g_name AND r.version = g_version
    RETURNING g_place
  ), inserted AS (
    INSERT INTO {s}.records (kind, name, facts, expires)
    SELECT g_kind, g_name, g_facts, g_expires FROM given WHERE g_version IS NULL AND g_facts IS NOT NULL
    ON CONFLICT DO NOTHING RETURNING kind AS i_kind, name AS i_name
  )
  SELECT g_place FROM updated
  UNION ALL SELECT g_place FROM deleted
  UNION ALL SELECT g_place FROM inserted JOIN given ON g_kind = i_kind AND g_name = i_name;
END $$;
