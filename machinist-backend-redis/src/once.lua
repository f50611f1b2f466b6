-- Writes one fact unless it is there, and wakes those who wait: commit.lua for what every task needs once, its end,
-- with less to read and less to call.
--
-- KEYS[1]  the record; also the channel that wakes those who wait for it
-- ARGV[1]  the fact's name
-- ARGV[2]  its value
-- ARGV[3]  expiry in ms
--
-- Returns  as commit.lua does.
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return redis.call('HGETALL', KEYS[1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
-- As in commit.lua: wake-ups may be missed.
redis.pcall('SPUBLISH', KEYS[1], '')
return 1
