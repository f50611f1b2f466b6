-- Writes facts of records, of each if certain facts are absent and others are there. See Backend::commit.
--
-- All records of one call are changed in the same way: what is done is said once, then what is written into each. Each
-- is changed or not by itself; a cluster, where records live on different nodes, is given one at a time.
--
-- KEYS     the records, hashes; also the channels that wake those who wait for them
--
-- ARGV[1]  U: how many names must be absent
-- ARGV[2]  E: how many facts must be absent or equal
-- ARGV[3]  A: how many facts are written only where absent
-- ARGV[4]  F: how many facts are written: those E, those A, and facts that the caller knows to be absent or means to
--          replace
-- ARGV[5]  D: how many names are dropped
-- ARGV[6]  expiry in ms: 0 keeps what was set; negative counts only where none is set
-- ARGV[7]  the sum of 1: wakes, 2: counts the facts that a record then has, 4: requires facts
-- then     U names, E names, A names, a name that only records have whose expiry is set, the rest of the F names,
--          D names (none of which is written)
-- then     F values for each record
-- then     only if facts are required: R names, their R values, and R
--
-- Returns  1 when all is done; else a list: the number of each record that was refused, and that record as HGETALL
--          returns it. Nothing was written into those. A call that counts returns a list with an entry for each record:
--          the number of its facts, or the record that was refused.
--
-- Facts are written before names are dropped: a hash that loses its last field loses its expiry too.
--
-- Every task costs two or three of these calls, and all tasks of all workers share the one thread that runs them. So
-- what most calls do not need is not made, and what all records share is made once.

local call, keys, args = redis.call, KEYS, ARGV
local unless, equal, count, drop = args[1] + 0, args[2] + 0, args[4] + 0, args[5] + 0
local optional, expiry, flags = equal + args[3], args[6], args[7] + 0
local wake, counts, require = flags % 2 == 1, flags % 4 >= 2, 0
if flags >= 4 then require = args[#args] + 0 end
-- Where the required names stand; their values follow.
local required = #args - 1 - 2 * require
local guarded = unless + optional
-- Where the names of facts stand: the guarded ones, and those after the name that stands between.
local names, rest = 7 + unless, 8 + unless
-- Where the names to drop stand, and the values of the first record, each after this place.
local drops = rest + count
local values = drops + drop

-- Lua passes at most about 8000 values to one command; to find that out after the first write would be too late.
if unless + 2 * count + drop + 2 * require > 7000 then
  return redis.error_reply('TOOLARGE a commit of more than 7000 names and values, write fewer facts at once')
end

-- One fact that is written unless it is there: a command of Redis does that.
local once = unless == 1 and count == 1 and optional == 0 and drop == 0 and require == 0 and args[8] == args[10]
-- Nothing can be in the way of records that are not there, as those of new tasks are not.
local new = unless == 0 and optional > 0 and require == 0
local only_first, after = string.sub(expiry, 1, 1) == '-', expiry
-- Handed on as text: Lua would write a number out as a double, and Redis read it back.
if only_first then after = string.sub(expiry, 2) end
-- Names and values by turns, as HSET takes them.
local facts
if count > 1 then
  facts = {}
  for f = 1, count do facts[2 * f - 1] = args[(f > optional and rest or names) + f] end
end

-- What is returned: the refusals, or an entry for each record of a call that counts.
local answer
if counts then answer = {} end
for k = 1, #keys do
  local key = keys[k]
  local fresh = new and call('EXISTS', key) == 0
  local there, granted, held = nil, true, 0
  if once then
    granted = call('HSETNX', key, args[8], args[values + 1]) == 1
  else
    if guarded > 0 and not fresh then
      there = call('HMGET', key, unpack(args, 8, 8 + guarded))
      for i = 1, unless do
        if there[i] then granted = false end
      end
      for i = 1, optional do
        local value = there[unless + i]
        if value then
          if i <= equal and value ~= args[values + i] then granted = false end
          held = held + 1
        end
      end
    end
    if require > 0 then
      local found = call('HMGET', key, unpack(args, required + 1, required + require))
      for i = 1, require do
        if found[i] ~= args[required + require + i] then granted = false end
      end
    end
    if granted and held < count then
      if count == 1 then
        call('HSET', key, args[optional > 0 and names + 1 or rest + 1], args[values + 1])
      elseif held == 0 then
        for f = 1, count do facts[2 * f] = args[values + f] end
        call('HSET', key, unpack(facts))
      else
        local missing = {}
        for f = 1, count do
          if f > optional or not there[unless + f] then
            missing[#missing + 1] = facts[2 * f - 1]
            missing[#missing + 1] = args[values + f]
          end
        end
        call('HSET', key, unpack(missing))
      end
    end
    if granted and drop > 0 then call('HDEL', key, unpack(args, drops + 1, drops + drop)) end
  end
  if not granted then
    answer = answer or {}
    if not counts then answer[#answer + 1] = k end
    answer[#answer + 1] = call('HGETALL', key)
  else
    if counts then answer[#answer + 1] = call('HLEN', key) end
    if not only_first or fresh then
      if expiry ~= '0' then call('PEXPIRE', key, after) end
    elseif not (there and there[guarded + 1]) then
      call('PEXPIRE', key, after, 'NX')
    end
    -- A user who may not publish must not be told that a change that was made has failed: wake-ups may be missed.
    if wake then redis.pcall('SPUBLISH', key, '') end
  end
  values = values + count
end
return answer or 1
