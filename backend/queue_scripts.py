"""The steps of `backend.queue` in Lua: each happens whole, and nothing happens in between."""

from __future__ import annotations

COUNT = """
local job = redis.call('GET', KEYS[1])
local status = job and redis.call('HGET', ARGV[1] .. job, 'status')
for i = 4, #ARGV do
    if ARGV[i] == status then
        redis.call('INCR', KEYS[2])
        redis.call('SADD', KEYS[4], ARGV[2])
        if ARGV[3] == '1' then redis.call('SET', KEYS[3], 1) end
        return {job, status}
    end
end
return nil
"""
"""Count a request where the project's job waits or runs.

KEYS: of the project's job, its count of requests and its mark "forced", and of the set of all projects.
ARGV: what RQ's keys of jobs begin with, the project's id, whether it was asked for on purpose (1 or 0), and the states
of a job that waits or runs.

Returns:
    The job and RQ's status of it; nil where there is none, and then nothing is counted.
"""

PROMOTE = """
if redis.call('LREM', KEYS[1], 0, ARGV[1]) == 0 then
    if redis.call('ZREM', KEYS[2], ARGV[1]) == 0 then return 0 end
    redis.call('HSET', ARGV[4] .. ARGV[1], 'status', 'queued')
end
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
    local project = string.match(id, '^train%-p(%d+)%-')
    if not project or redis.call('EXISTS', ARGV[2] .. project .. ARGV[3]) == 0 then
        return redis.call('LINSERT', KEYS[1], 'BEFORE', id, ARGV[1])
    end
end
return redis.call('RPUSH', KEYS[1], ARGV[1])
"""
"""Move a job that waits, in the queue or for its time, before the first one that nobody waits for in person, and so
behind those that somebody does.

KEYS: of RQ's queue and of its jobs that wait for their time.
ARGV: the job, what stands before and after a project's id in its mark "forced", and what RQ's keys of jobs begin with.
"""
