"""Time that passes at once: every time in a store's records moves back, since a store's own clock cannot be set."""

from __future__ import annotations

from functools import cache
from urllib.parse import urlsplit

import psycopg2
import psycopg2.extensions
import redis

_AGE_REDIS = """
local ms = tonumber(ARGV[1])
local function is_time(value) return string.match(value, '^1%d%d%d%d%d%d%d%d%d%d%d%d$') end
local function older(value) return string.format('%.0f', value - ms) end
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'zset' then
    local pairs_ = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for n = 1, #pairs_, 2 do
      if tonumber(pairs_[n + 1]) > 1e12 then redis.call('ZADD', key, older(pairs_[n + 1]), pairs_[n]) end
    end
  elseif kind == 'hash' then
    local pairs_ = redis.call('HGETALL', key)
    for n = 1, #pairs_, 2 do
      local value = pairs_[n + 1]
      if is_time(value) then
        redis.call('HSET', key, pairs_[n], older(value))
      elseif string.match(key, ':parts$') then
        local moved = string.gsub(value, '("[a-z]+":)(1%d%d%d%d%d%d%d%d%d%d%d%d)', function(name, time)
          return name .. older(time)
        end)
        redis.call('HSET', key, pairs_[n], moved)
      end
    end
  end
  local left = redis.call('PTTL', key)
  if left > ms then redis.call('PEXPIRE', key, left - ms) elseif left > 0 then redis.call('DEL', key) end
end
"""


def age(store_url: str, seconds: float) -> None:
    """Let `seconds` pass for everything in a store: leases, back-offs, rings, deadlines, retention."""
    if urlsplit(store_url).scheme == "redis":
        with redis.Redis.from_url(store_url) as client:
            client.eval(_AGE_REDIS, 0, int(seconds * 1000))
            return
    with _connection(store_url).cursor() as cursor:
        for table, columns in _times(store_url):
            moved = ", ".join(f'"{c}" = case when "{c}" > 1e9 then "{c}" - {seconds:f} else "{c}" end' for c in columns)
            cursor.execute(f'update "{table}" set {moved}')


def empty(store_url: str) -> None:
    """Forget everything in a store, faster than by making a new one."""
    if urlsplit(store_url).scheme == "redis":
        with redis.Redis.from_url(store_url) as client:
            client.flushall()
            return
    with _connection(store_url).cursor() as cursor:
        cursor.execute("delete from jobs; delete from uploads; delete from trash; delete from guards")


@cache
def _connection(store_url: str) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(store_url)
    connection.autocommit = True
    return connection


@cache
def _times(store_url: str) -> list[tuple[str, list[str]]]:
    """The columns that hold times, by table."""
    with _connection(store_url).cursor() as cursor:
        cursor.execute(
            "select table_name, array_agg(column_name::text) from information_schema.columns"
            " where table_schema = 'public' and data_type = 'double precision' group by table_name"
        )
        return list(cursor.fetchall())
