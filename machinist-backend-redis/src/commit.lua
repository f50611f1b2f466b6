-- Writes facts of one record unless certain facts are there. See Backend::commit.
--
-- KEYS[1]  the record, a hash; also the channel that wakes those who wait for it
--
-- ARGV[1]  U: how many names must be absent
-- ARGV[2]  E: how many facts must be absent or equal
-- ARGV[3]  A: how many facts are written only where absent
-- ARGV[4]  D: how many names are dropped
-- ARGV[5]  expiry in ms: 0 keeps what was set; negative counts only where none is set
-- ARGV[6]  '1' wakes
-- then     U names, E names, A names, D names (none of them is written by this commit)
-- then     name and value of every fact to write: first those E, then those A, then facts that the caller knows
--          to be absent or means to replace
--
-- Returns  1 when all is done; else nothing was written and the whole record comes back, as HGETALL returns it.
--
-- Facts are written before names are dropped: a hash that loses its last field loses its expiry too.

-- Lua passes at most about 8000 values to one command; to find that out after the first write would be too late.
if #ARGV > 7000 then
  return redis.error_reply('TOOLARGE a commit of more than 7000 names and values, write fewer facts at once')
end

local key = KEYS[1]
local unless, equal = tonumber(ARGV[1]), tonumber(ARGV[2])
local optional, drop = equal + tonumber(ARGV[3]), tonumber(ARGV[4])
local names = 6 + unless + optional
local facts = names + drop
local there, held = nil, 0

if names > 6 then
  there = redis.call('HMGET', key, unpack(ARGV, 7, names))
  for i = 1, unless do
    if there[i] then return redis.call('HGETALL', key) end
  end
  for i = 1, optional do
    local value = there[unless + i]
    if value then
      if i <= equal and value ~= ARGV[facts + 2 * i] then return redis.call('HGETALL', key) end
      held = held + 1
    end
  end
end

if held > 0 then
  local missing = {}
  for i = 1, (#ARGV - facts) / 2 do
    if i > optional or not there[unless + i] then
      missing[#missing + 1] = ARGV[facts + 2 * i - 1]
      missing[#missing + 1] = ARGV[facts + 2 * i]
    end
  end
  if #missing > 0 then redis.call('HSET', key, unpack(missing)) end
elseif #ARGV > facts then
  redis.call('HSET', key, unpack(ARGV, facts + 1))
end
if drop > 0 then redis.call('HDEL', key, unpack(ARGV, names + 1, facts)) end

-- Handed on as text: Lua would write a number out as a double, and Redis read it back.
local expiry = ARGV[5]
if expiry ~= '0' then
  if string.sub(expiry, 1, 1) == '-' then
    redis.call('PEXPIRE', key, string.sub(expiry, 2), 'NX')
  else
    redis.call('PEXPIRE', key, expiry)
  end
end
-- A user who may not publish must not be told that a change that was made has failed: wake-ups may be missed.
if ARGV[6] == '1' then redis.pcall('SPUBLISH', key, '') end
return 1
