-- Verify a key, count the request, remember it. KEYS: the key's hash. ARGV: the
-- endpoint and the method.
local key = redis.call('HMGET', KEYS[1], 'enabled', 'limit', 'expires_at', 'name', 'user')
if not key[1] then
    return {0, 'NOT_FOUND'}
elseif key[1] ~= '1' then
    return {0, 'DISABLED'}
elseif key[3] and tonumber(key[3]) <= tonumber(redis.call('TIME')[1]) then
    return {0, 'EXPIRED'}
end
local code = 'VALID'
local count = redis.call('HINCRBY', KEYS[1], 'count', 1)
if count > tonumber(key[2]) then
    count = redis.call('HINCRBY', KEYS[1], 'count', -1)
    code = 'USAGE_EXCEEDED'
end
redis.call('XADD', 'requests', 'MAXLEN', '~', 100000, '*', 'key', KEYS[1],
    'endpoint', ARGV[1], 'method', ARGV[2], 'code', code)
return {code == 'VALID' and 1 or 0, code, key[4], key[5], count, tonumber(key[2]) - count}
