-- The file's tables, version 2. Instants are microseconds since the Unix epoch. Everything here is read by a person
-- with the sqlite3 shell as it stands; facts are text, headers are not. The table `clock` is in clock.rs.

CREATE TABLE namespaces (
  id   INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE
);

-- Task queues (dead = 0) and their dead letters (dead = 1).
CREATE TABLE queues (
  id        INTEGER PRIMARY KEY,
  namespace INTEGER NOT NULL,
  name      TEXT NOT NULL,
  dead      INTEGER NOT NULL,
  UNIQUE (namespace, name, dead)
);

-- holder: 0 = ready, -1 = not before `due`, else the owner that has claimed it. rank: the negated priority.
CREATE TABLE messages (
  id           INTEGER PRIMARY KEY,
  queue        INTEGER NOT NULL,
  rank         INTEGER NOT NULL,
  due          INTEGER NOT NULL,
  holder       INTEGER NOT NULL,
  redelivered  INTEGER NOT NULL,
  task         TEXT,
  kind         TEXT,
  content_type TEXT,
  timestamp    INTEGER,
  priority     INTEGER,
  app_id       TEXT,
  headers      BLOB,
  body         BLOB NOT NULL
);
CREATE INDEX messages_ready ON messages (queue, rank, due) WHERE holder = 0;
CREATE INDEX messages_later ON messages (due) WHERE holder = -1;
CREATE INDEX messages_held ON messages (holder) WHERE holder > 0;

-- Processes that hold messages. AUTOINCREMENT: an id never comes back, so an old receipt settles nothing new.
CREATE TABLE owners (
  id    INTEGER PRIMARY KEY AUTOINCREMENT,
  beat  INTEGER NOT NULL,
  pid   INTEGER NOT NULL,
  since INTEGER NOT NULL
);
CREATE TABLE subscriptions (
  owner INTEGER NOT NULL,
  queue INTEGER NOT NULL,
  count INTEGER NOT NULL,
  PRIMARY KEY (owner, queue)
) WITHOUT ROWID;

-- One row per record, not per fact: a commit then reads and writes one place.
CREATE TABLE records (
  id        INTEGER PRIMARY KEY,
  namespace INTEGER NOT NULL,
  kind      TEXT NOT NULL,
  name      TEXT NOT NULL,
  expires   INTEGER,
  facts     BLOB NOT NULL,
  UNIQUE (namespace, kind, name)
);
CREATE INDEX records_expiry ON records (expires) WHERE expires IS NOT NULL;

-- The tail of the wake-ups, for watchers in other processes.
CREATE TABLE wakes (
  seq       INTEGER PRIMARY KEY,
  namespace INTEGER NOT NULL,
  source    INTEGER NOT NULL,
  kind      TEXT NOT NULL,
  name      TEXT NOT NULL
);

CREATE TABLE notes (
  namespace INTEGER NOT NULL,
  list      TEXT NOT NULL,
  member    TEXT NOT NULL,
  at        INTEGER NOT NULL,
  PRIMARY KEY (namespace, list, member)
) WITHOUT ROWID;
CREATE INDEX notes_order ON notes (namespace, list, at, member);
