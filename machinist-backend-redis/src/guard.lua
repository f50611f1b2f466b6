-- Writes one fact unless it or certain others are there: commit.lua for what every task needs once, its start,
-- with less to read and less to call.
--
-- KEYS[1]  the record
-- ARGV[1]  expiry in ms, counts only where none is set
-- ARGV[2]  the fact's value
-- ARGV[3]  the fact's name
-- then     other names that must be absent
-- last     a name that only records have whose expiry is set, so that it need not be asked for
--
-- Returns  as commit.lua does.
local last = #ARGV - 2
local there = redis.call('HMGET', KEYS[1], unpack(ARGV, 3))
for i = 1, last - 1 do
  if there[i] then return redis.call('HGETALL', KEYS[1]) end
end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[2])
if not there[last] then redis.call('PEXPIRE', KEYS[1], ARGV[1], 'NX') end
return 1
