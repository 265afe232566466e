-- The limits of one key, for all gateways that share this store: `limits.py` and `rate_limiter.py` in one atomic step.
-- KEYS: a hash (what buckets hold), a list (times of requests), a sorted set (what runs, by when its lease ends).
-- ARGV: what to do, request, lease, now (empty: this server's clock), the key's limits, tokens, tokens taken before.
-- Times are whole microseconds. Answers (0 or which bound refused, how long to wait, what is left of requests and of
-- tokens, what was taken), or an empty list where there is nothing to say.
local act, request, lease, now = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local burst, interval = tonumber(ARGV[5]), tonumber(ARGV[6])
local parallel = tonumber(ARGV[7])
local MINUTE, HOUR, DAY = 60000000, 3600000000, 86400000000
local windows = {{tonumber(ARGV[8]), MINUTE}, {tonumber(ARGV[9]), HOUR}, {tonumber(ARGV[10]), DAY}}
local buckets = {{tonumber(ARGV[11]), MINUTE, 'm'}, {tonumber(ARGV[12]), DAY, 'd'}}
local tokens, before = tonumber(ARGV[13]), {tonumber(ARGV[14]), tonumber(ARGV[15])}
local state, log, running = KEYS[1], KEYS[2], KEYS[3]

if not now then
  local clock = redis.call('TIME')
  now = clock[1] * 1000000 + clock[2]
end
-- A clock that is set back stands still until it has caught up.
now = math.max(now, tonumber(redis.call('HGET', state, 'now') or 0))

local function number(name) return tonumber(redis.call('HGET', state, name) or 0) end
local function keep(name, value) redis.call('HSET', state, name, string.format('%.0f', value)) end
local function stamp(from_end) return tonumber(redis.call('LINDEX', log, -from_end)) end
local function drained(bucket)
  return math.max(0, number('used' .. bucket[3]) - (now - number('at' .. bucket[3])) * bucket[1])
end
local function set_used(bucket, used)
  keep('used' .. bucket[3], math.max(0, used))
  keep('at' .. bucket[3], now)
end
local function token_wait(bucket, wanted)
  local missing = drained(bucket) + (math.min(wanted, bucket[1]) - bucket[1]) * bucket[2]
  return math.max(0, math.ceil(missing / bucket[1]))
end

local count = redis.call('LLEN', log)
local function request_wait()
  local wait = 0
  for _, window in ipairs(windows) do
    if window[1] > 0 and count >= window[1] then
      wait = math.max(wait, stamp(window[1]) + window[2] - now)
    end
  end
  if burst > 0 then
    wait = math.max(wait, number('empty_at') - (burst - 1) * interval - now)
  end
  return wait
end

local function tighter(best, limit, remaining, reset)
  if not best or remaining < best[2] or (remaining == best[2] and reset > best[3]) then
    return {limit, remaining, reset}
  end
  return best
end
local function requests_left()
  local best
  for _, window in ipairs(windows) do
    if window[1] > 0 then
      -- How many of the newest are younger than the span: the times only grow.
      local low, high = 0, math.min(window[1], count)
      while low < high do
        local middle = math.floor((low + high + 1) / 2)
        if stamp(middle) + window[2] > now then low = middle else high = middle - 1 end
      end
      best = tighter(best, window[1], window[1] - low, low > 0 and stamp(low) + window[2] - now or 0)
    end
  end
  if burst > 0 then
    local filled = math.max(0, number('empty_at') - now)
    local left = math.max(0, burst - math.ceil(filled / interval))
    best = tighter(best, burst, left, math.max(0, filled - (burst - left - 1) * interval))
  end
  return best or {-1, 0, 0}
end
local function tokens_left()
  local best
  for _, bucket in ipairs(buckets) do
    if bucket[1] > 0 then
      local left = math.max(0, math.floor((bucket[1] * bucket[2] - drained(bucket)) / bucket[2]))
      best = tighter(best, bucket[1], left, left == bucket[1] and 0 or token_wait(bucket, left + 1))
    end
  end
  return best or {-1, 0, 0}
end
local function answer(refused, wait, taken)
  local requests, left = requests_left(), tokens_left()
  return {refused, wait, requests[1], requests[2], requests[3], left[1], left[2], left[3], taken[1], taken[2], now}
end

if act == 'begin' then
  redis.call('ZREMRANGEBYSCORE', running, '-inf', now)
  if parallel > 0 and redis.call('ZCARD', running) >= parallel then return answer(3, 0, {0, 0}) end
  local wait = request_wait()
  if wait > 0 then return answer(1, wait, {0, 0}) end
  if burst > 0 then keep('empty_at', math.max(now, number('empty_at')) + interval) end
  local size = math.max(windows[1][1], windows[2][1], windows[3][1])
  if size > 0 then
    redis.call('RPUSH', log, string.format('%.0f', now))
    redis.call('LTRIM', log, -size, -1)
    count = redis.call('LLEN', log)
  end
  if parallel > 0 then redis.call('ZADD', running, now + lease, request) end
elseif act == 'reserve' then
  local wait = 0
  for _, bucket in ipairs(buckets) do
    if bucket[1] > 0 then wait = math.max(wait, token_wait(bucket, tokens)) end
  end
  if wait > 0 then return answer(2, wait, {0, 0}) end
  for at, bucket in ipairs(buckets) do
    before[at] = math.min(tokens, bucket[1])
    if bucket[1] > 0 then set_used(bucket, drained(bucket) + before[at] * bucket[2]) end
  end
elseif act == 'end' then
  redis.call('ZREM', running, request)
  for at, bucket in ipairs(buckets) do
    if bucket[1] > 0 then set_used(bucket, drained(bucket) + (tokens - before[at]) * bucket[2]) end
  end
elseif act == 'renew' then
  redis.call('ZADD', running, 'XX', now + lease, request)
end
keep('now', now)
-- What says the same as nothing goes by itself.
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, 2 * DAY / 1000) end
if act == 'end' or act == 'renew' then return {} end
return answer(0, 0, act == 'reserve' and before or {0, 0})
