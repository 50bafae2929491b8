"""The steps of `backend.prelabel_ledger` in Lua: each happens whole, and nothing happens in between.

KEYS[1] is the project's prefix, ARGV[1] the time in seconds (negative: Redis's own). Task ids are below 2^53.
"""

_COMMON = """
local base, now = KEYS[1], tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function stamp(at) return string.format('%.6f', at) end
local function key(name) return base .. ':' .. name end
local ready, later, leases, owners = key('ready'), key('later'), key('leases'), key('owners')
local tries, run, failed, pace = key('tries'), key('run'), key('failed'), key('pace')

local function begin_run(id)
  if redis.call('HSETNX', run, 'id', id) == 1 then
    redis.call('HSET', run, 'started_at', stamp(now))
    redis.call('LPUSH', pace, '[' .. stamp(now) .. ',0]')
  end
end
local function count_in(added, id)
  if added == 0 then return end
  begin_run(id)
  redis.call('HINCRBY', run, 'total', added)
end
local function known(task)
  return redis.call('ZSCORE', ready, task) or redis.call('ZSCORE', later, task)
    or redis.call('HEXISTS', owners, task) == 1
end
local function claimed_by(task, owner) return redis.call('HGET', owners, task) == owner end
local function unclaim(task)
  redis.call('ZREM', leases, task)
  redis.call('HDEL', owners, task)
end
local function unmark(importing, task, owner)
  local mark = redis.call('HGET', importing, task)
  if mark and string.sub(mark, 1, #owner + 1) == owner .. '|' then redis.call('HDEL', importing, task) end
end
local function note_pace()
  local done = 0
  for _, name in ipairs({'posted', 'present', 'failed'}) do
    done = done + (tonumber(redis.call('HGET', run, name)) or 0)
  end
  redis.call('LPUSH', pace, '[' .. stamp(now) .. ',' .. done .. ']')
  redis.call('LTRIM', pace, 0, 19)
end
local function give_up(task, reason)
  unclaim(task)
  redis.call('HDEL', tries, task)
  redis.call('HSET', failed, task, reason)
  redis.call('HINCRBY', run, 'failed', 1)
end
local function died(task)
  unclaim(task)
  if redis.call('HINCRBY', tries, task, 1) >= 4 then
    give_up(task, "the worker's process ended four times while it predicted this task, at last alone; "
      .. "the worker's log says how")
  else
    redis.call('ZADD', ready, task, task)
  end
end
local function collect()
  for _, task in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', stamp(now))) do died(task) end
  for _, task in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', stamp(now))) do
    redis.call('ZREM', later, task)
    redis.call('ZADD', ready, task, task)
  end
end
"""

BEGIN_RUN = (
    _COMMON
    + """
begin_run(ARGV[2])
return redis.call('HGET', run, 'id')
"""
)

ADD = (
    _COMMON
    + """
local added, urgent = 0, ARGV[3] == '1'
for at = 4, #ARGV do
  local task = ARGV[at]
  local score = urgent and tonumber(task) - 2^52 or tonumber(task)
  if not known(task) then
    redis.call('ZADD', ready, score, task)
    added = added + 1
  elseif urgent then
    redis.call('ZADD', ready, 'XX', score, task)
  end
end
count_in(added, ARGV[2])
return added
"""
)

DROP = (
    _COMMON
    + """
local dropped = redis.call('ZCARD', ready) + redis.call('ZCARD', later)
redis.call('DEL', ready, later)
if dropped > 0 then redis.call('HINCRBY', run, 'total', -dropped) end
return dropped
"""
)

READY = (
    _COMMON
    + """
local count = redis.call('ZCARD', ready) + redis.call('ZCOUNT', later, '-inf', stamp(now))
  + redis.call('ZCOUNT', leases, '-inf', stamp(now))
local first
for _, set in ipairs({later, leases}) do
  local due = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')[2]
  if due and (not first or tonumber(due) < first) then first = tonumber(due) end
end
return {count, first and stamp(math.max(first - now, 0)) or false}
"""
)

TAKE = (
    _COMMON
    + """
local owner, most, lease = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
collect()
local taken, kind = {}, nil
for _, task in ipairs(redis.call('ZRANGE', ready, 0, most - 1)) do
  local former = tonumber(redis.call('HGET', tries, task)) or 0
  if kind == nil then
    kind = former
    most = math.max(1, math.floor(most / 10 ^ former))
  end
  if former == kind and #taken < most then
    table.insert(taken, task)
    redis.call('ZREM', ready, task)
    redis.call('ZADD', leases, stamp(now + lease), task)
    redis.call('HSET', owners, task, owner)
  end
end
return taken
"""
)

RENEW = (
    _COMMON
    + """
local held, claims = 0, redis.call('HGETALL', owners)
for at = 1, #claims, 2 do
  if claims[at + 1] == ARGV[2] then
    redis.call('ZADD', leases, 'XX', stamp(now + tonumber(ARGV[3])), claims[at])
    held = held + 1
  end
end
return held
"""
)

RELEASE = (
    _COMMON
    + """
local prefix, released = ARGV[2], 0
local claims = redis.call('HGETALL', owners)
for at = 1, #claims, 2 do
  if string.sub(claims[at + 1], 1, #prefix) == prefix then
    if ARGV[3] == '1' then
      died(claims[at])
    else
      unclaim(claims[at])
      redis.call('ZADD', ready, claims[at], claims[at])
    end
    released = released + 1
  end
end
return released
"""
)

BEGIN = (
    _COMMON
    + """
local owner, version = ARGV[2], ARGV[3]
local answer_s, settle_s, check_s = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local importing, answered = key('importing:' .. version), key('answered:' .. version)
local said = {}
for at = 7, #ARGV do
  local task = ARGV[at]
  local since = tonumber(redis.call('ZSCORE', answered, task))
  local other = redis.call('HGET', importing, task)
  if not claimed_by(task, owner) then
    table.insert(said, 'lost')
  elseif since and since > now - answer_s then
    unclaim(task)
    redis.call('ZADD', later, stamp(now + check_s), task)
    table.insert(said, 'answered')
  elseif other and tonumber(string.match(other, '[^|]+$')) > now - settle_s then
    table.insert(said, 'doubt')
  else
    redis.call('HSET', importing, task, owner .. '|' .. stamp(now))
    table.insert(said, 'own')
  end
end
redis.call('EXPIRE', importing, 86400)
return said
"""
)

SEND = (
    _COMMON
    + """
local owner, importing = ARGV[2], key('importing:' .. ARGV[3])
local still = {}
for at = 4, #ARGV do
  if claimed_by(ARGV[at], owner) then
    redis.call('HSET', importing, ARGV[at], owner .. '|' .. stamp(now))
    table.insert(still, ARGV[at])
  end
end
return still
"""
)

ABORT = (
    _COMMON
    + """
for at = 4, #ARGV do unmark(key('importing:' .. ARGV[3]), ARGV[at], ARGV[2]) end
"""
)

FINISH = (
    _COMMON
    + """
local owner, version, outcome = ARGV[2], ARGV[3], ARGV[4]
local importing, written = key('importing:' .. version), key('written:' .. version)
local lost = {}
for at = 5, #ARGV do
  local task = ARGV[at]
  if outcome == 'posted' then redis.call('ZADD', written, stamp(now), task) end
  unmark(importing, task, owner)
  if claimed_by(task, owner) then
    unclaim(task)
    redis.call('HDEL', tries, task)
    redis.call('HDEL', importing, task)
    redis.call('HINCRBY', run, outcome, 1)
    if outcome == 'posted' then redis.call('HINCRBY', run, 'version:' .. version, 1) end
  else
    table.insert(lost, task)
  end
end
if outcome == 'posted' then
  redis.call('ZREMRANGEBYSCORE', written, '-inf', stamp(now - 7200))
  redis.call('EXPIRE', written, 7200)
end
redis.call('HDEL', run, 'problem', 'setbacks')
note_pace()
return lost
"""
)

DEFER = (
    _COMMON
    + """
for at = 4, #ARGV do
  if claimed_by(ARGV[at], ARGV[2]) then
    unclaim(ARGV[at])
    redis.call('ZADD', later, stamp(now + tonumber(ARGV[3])), ARGV[at])
  end
end
"""
)

FAIL = (
    _COMMON
    + """
local owner, importing = ARGV[2], key('importing:' .. ARGV[3])
for at = 5, #ARGV, 2 do
  local task = ARGV[at]
  if claimed_by(task, owner) then
    redis.call('HDEL', importing, task)
    if redis.call('HINCRBY', tries, task, 1) >= 2 then
      give_up(task, ARGV[at + 1])
    else
      unclaim(task)
      redis.call('ZADD', later, stamp(now + tonumber(ARGV[4])), task)
    end
  end
end
note_pace()
"""
)

ANSWER = (
    _COMMON
    + """
local version, since = ARGV[3], now - tonumber(ARGV[4])
local answer_s, check_s, finished = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local importing, written = key('importing:' .. version), key('written:' .. version)
local answered = key('answered:' .. version)
local withheld, added = {}, 0
for at = 8, 7 + finished do
  local task = ARGV[at]
  local at_time = tonumber(redis.call('ZSCORE', written, task))
  if redis.call('HEXISTS', importing, task) == 1 or (at_time and at_time > since) then
    table.insert(withheld, task)
    if not known(task) then
      redis.call('ZADD', later, stamp(now + check_s), task)
      added = added + 1
    end
  else
    redis.call('ZADD', answered, stamp(now), task)
    if redis.call('ZREM', ready, task) == 1 then redis.call('ZADD', later, stamp(now + check_s), task) end
  end
end
for at = 8 + finished, #ARGV do
  local task = ARGV[at]
  if not known(task) then added = added + 1 end
  if redis.call('HEXISTS', owners, task) == 0 and not redis.call('ZSCORE', later, task) then
    redis.call('ZADD', ready, tonumber(task) - 2^52, task)
  end
end
redis.call('ZREMRANGEBYSCORE', answered, '-inf', stamp(now - answer_s))
redis.call('EXPIRE', answered, math.ceil(answer_s))
count_in(added, ARGV[2])
return withheld
"""
)

WAITED = (
    _COMMON
    + """
if redis.call('EXISTS', run) == 1 then redis.call('HINCRBYFLOAT', run, 'label_studio_s', ARGV[2]) end
"""
)

SETBACK = (
    _COMMON
    + """
if redis.call('EXISTS', run) == 0 then return 1 end
redis.call('HSET', run, 'problem', ARGV[2])
return redis.call('HINCRBY', run, 'setbacks', 1)
"""
)

RUN = (
    _COMMON
    + """
return {redis.call('HGETALL', run), redis.call('LRANGE', pace, 0, -1), stamp(now)}
"""
)

END = (
    _COMMON
    + """
if redis.call('EXISTS', run) == 0 or redis.call('EXISTS', ready, later, leases, key('requests')) > 0 then
  return false
end
local ended = {redis.call('HGETALL', run), redis.call('LRANGE', pace, 0, -1), stamp(now), redis.call('HGETALL', failed)}
redis.call('DEL', run, failed, pace, tries)
return ended
"""
)
