"""Random calls from several sessions to a server whose clock stands still between
them, and to model.py. Every answer, and from time to time every table and
view, must be the same.

    model_calls.py BINDIR DIR CLOCK_LIBRARY SECONDS SEED [FIGURES]

A run is of one seed. Two of three go on through evictions, workers that are
replaced and clean stops, after which all must be exact; the third ends with a
crash, after which nobody may have more than a limit, be billed for more than
was admitted, or lose more than a step. A run that differs is cut down to a few
calls, which are printed. SECONDS of 0: the one seed alone.
"""
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import time
import traceback
import zlib
from collections import Counter

import psycopg

from model import *

UNIX2000 = 946684800 * US
def q(x):
    if x is None: return 'NULL'
    if isinstance(x, bool): return 'true' if x else 'false'
    if isinstance(x, int): return str(x)
    if isinstance(x, (dict,)): return q(json.dumps(x)) + '::jsonb'
    return "'" + str(x).replace("'", "''") + "'"
def arr(x, t): return 'NULL' if x is None else "ARRAY[%s]::%s[]" % (','.join(q(i) for i in x), t)
def ts(x): return 'NULL' if x is None else "('2000-01-01 00:00+00'::timestamptz + interval '%d microseconds')" % x

class Server:
    """A server of its own, with the clock of test/t/clock.c."""
    def __init__(self, bindir, dir, library):
        self.bindir, self.dir, self.library = bindir, dir, library
        self.clock_file = dir + '/clock'
        with open(self.clock_file, 'wb') as f: f.write(bytes(16))
        self.set(from_dt(datetime(2023, 12, 30, 12, tzinfo=timezone.utc)))
        subprocess.check_call([bindir + '/initdb', '-D', dir + '/db', '-U', 'postgres', '-A', 'trust', '--no-locale', '-E', 'UTF8', '--no-sync'],
                              stdout=subprocess.DEVNULL)
        with open(dir + '/db/postgresql.conf', 'a') as f:
            for line in ("shared_preload_libraries = 'apikeys'", "listen_addresses = ''", "unix_socket_directories = '%s'" % dir, 'fsync = off', 'autovacuum = off',
                         "apikeys.flush_interval = '20ms'", 'apikeys.max_tracked_keys = 1000', "apikeys.expired_key_grace = '20000d'",
                         'apikeys.history_retention = 0', 'apikeys.rollup_retention = 0', "apikeys.meter_timeout = '60s'", "apikeys.sweep_interval = '5s'"):
                f.write(line + '\n')
        self.start()
    def set(self, us):
        self.now = us
        with open(self.clock_file, 'r+b') as f: f.write(struct.pack('qq', 0, us + UNIX2000))
    def ctl(self, *arguments):
        subprocess.check_call([self.bindir + '/pg_ctl', '-w', '-s', '-D', self.dir + '/db', *arguments],
                              env=dict(os.environ, LD_PRELOAD=self.library, APIKEYS_TEST_CLOCK=self.clock_file))
    def start(self): self.ctl('-l', self.dir + '/log', 'start')
    def stop(self, mode='fast'): self.ctl('-m', mode, 'stop')
    def connect(self, db): return psycopg.connect(host=self.dir, dbname=db, user='postgres', autocommit=True)

SETUP = """
CREATE EXTENSION pgcrypto; CREATE EXTENSION apikeys;
CREATE SCHEMA t;
CREATE FUNCTION t.us(timestamptz) RETURNS bigint LANGUAGE sql AS $$ SELECT CASE WHEN isfinite($1) THEN ((extract(epoch from $1) - 946684800) * 1000000)::bigint END $$;
CREATE FUNCTION t.ius(interval) RETURNS bigint LANGUAGE sql AS $$ SELECT (extract(epoch from $1) * 1000000)::bigint $$;
"""
VCOLS = """v.valid, v.code, v.key_id::text, v.api_id, v.name, v.user_id, v.plan_id, v.plan_name, v.permissions, v.current_usage, v."limit", v.remaining,
 t.us(v.reset_time) reset_time, v.period, t.ius(v.retry_after) retry_after, t.us(v.expires_at) expires_at, v.limits, v.credits, v.repeated"""
UCOLS = """v.key_id::text, v.user_id, v.plan_id, v.current_usage, v."limit", v.remaining, t.us(v.reset_time) reset_time, v.period, t.us(v.period_start) period_start,
 v.subject, v.limits, v.credits"""
ZONES = ['UTC', 'America/New_York', 'Australia/Lord_Howe', 'Asia/Kathmandu', 'Europe/Berlin', 'Pacific/Apia']

class Mismatch(Exception): pass

class Session:
    def __init__(self, conn): self.conn = conn; self.tx = None

def parse_limits(l):
    if l is None: return None
    out = []
    for x in l:
        x = dict(x)
        if x['reset_time'] is not None: x['reset_time'] = from_dt(datetime.fromisoformat(x['reset_time']))
        out.append(x)
    return out

class Run:
    def __init__(self, server, seed, nsess=3):
        self.srv, self.seed = server, seed
        self.rng = random.Random(seed)
        self.db = 'r%s' % seed
        self.log = []
        self.compared = 0; self.ops = 0
        self.T = copy(EMPTY_T); self.M = Meter()
        self.keyids = []    # index -> uuid
        self.resids = []    # index -> uuid
        self.released = 0; self.stats0 = {}
        self.srv.set(from_dt(datetime(*random.Random(seed).choice([(2023,12,30,23,59,50),(2024,2,28,23,0,0),(2024,3,10,6,30),(2025,1,31,12),(2024,10,27,0,30),(2026,11,1,5,0)]), tzinfo=timezone.utc)))
        c = server.connect('postgres')
        c.execute('DROP DATABASE IF EXISTS %s WITH (FORCE)' % self.db)
        if not c.execute("SELECT 1 FROM pg_database WHERE datname = 'model'").fetchone():
            c.execute('CREATE DATABASE model')
            d = server.connect('model'); d.execute(SETUP); d.close()
        c.execute('CREATE DATABASE %s TEMPLATE model' % self.db)
        c.close()
        self.nsess = nsess
        self.connect()
        self.ctl.execute("INSERT INTO apikeys.apis (id) VALUES ('filler')")
        self.ctl.execute("CREATE TABLE t.fillers AS SELECT id, api_key FROM apikey_create('pulse', 'filler', api_id => 'filler')")
        self.pulse = self.ctl.execute("SELECT api_key FROM t.fillers").fetchone()[0]
    def connect(self):
        self.S = [Session(self.srv.connect(self.db)) for _ in range(self.nsess)]
        self.ctl = self.srv.connect(self.db)
        for i, s in enumerate(self.S): s.conn.execute("SET TimeZone = %s" % q(ZONES[(self.seed + i) % len(ZONES)]))
        self.ctl.execute("SET TimeZone = 'UTC'")
    def close(self):
        for s in self.S: s.conn.close()
        self.ctl.close()
        c = self.srv.connect('postgres'); c.execute('DROP DATABASE IF EXISTS %s WITH (FORCE)' % self.db); c.close()
    @property
    def now(self): return self.srv.now
    # --- sql ---
    def sql(self, s, text):
        self.log.append((self.now, s if s is not None else 'c', text))
        conn = self.ctl if s is None else self.S[s].conn
        cur = conn.cursor(row_factory=psycopg.rows.dict_row)
        try:
            cur.execute(text)
            return cur.fetchall() if cur.description else []
        except psycopg.Error as e:
            return Err(e.sqlstate or str(e)), str(e)
    def fail(self, what, got, want):
        raise Mismatch('%s\n got  %s\n want %s' % (what, got, want))
    def same(self, what, got, want):
        self.compared += 1
        if isinstance(got, tuple) and isinstance(got[0], Err):
            if not (isinstance(want, Err) and want.code == got[0].code):
                self.fail(what, 'ERROR %s %s' % (got[0].code, got[1]), 'ERROR ' + want.code if isinstance(want, Err) else want)
            return
        if isinstance(want, Err): self.fail(what, got, 'ERROR ' + want.code)
        if isinstance(want, dict) and isinstance(got, dict):
            d = {k: (got.get(k, '?'), want[k]) for k in want if got.get(k, '?') != want[k]}
            if d: self.fail(what, {k: v[0] for k, v in d.items()}, {k: v[1] for k, v in d.items()})
        elif got != want: self.fail(what, got, want)
    # --- views and transactions ---
    def view(self, s):
        x = self.S[s].tx
        return x['T'] if x and x['T'] is not None else self.T
    def writer(self):
        for i, s in enumerate(self.S):
            if s.tx and s.tx['T'] is not None: return i
        return None
    def can_write(self, s):
        x = self.S[s].tx
        w = self.writer()
        if x and x['mode']: return False
        return w is None or w == s
    def write_view(self, s):
        x = self.S[s].tx
        if x:
            if x['T'] is None: x['T'] = copy(self.T); x['save'] = [copy(self.T) if v is None else v for v in x['save']]
            return x['T']
        return self.T
    def xact_start(self, s):
        x = self.S[s].tx
        return x['start'] if x else self.now
    def abort(self, s):
        x = self.S[s].tx
        for level in reversed(x['refunds']):
            for h in reversed(level): give_back(self.M, h, self.now)
        self.S[s].tx = None
    def after_error(self, s):
        if self.S[s].tx:
            self.sql(s, 'ROLLBACK')
            self.abort(s)
    # run a model function f() that may raise Err, against sql
    def both(self, s, text, f, pick=None, what=None):
        try: want = f()
        except Err as e: want = e
        got = self.sql(s, text)
        if not (isinstance(got, tuple)) and pick is not None and not isinstance(want, Err): got = pick(got)
        self.same(what or text, got, want)
        if isinstance(want, Err): self.after_error(s); return None
        return got
    def write(self, s, text, f, pick=None):
        """f(T) changes the view"""
        T = self.write_view(s)
        def g():
            t2 = copy(T)
            r = f(t2)
            T.clear(); T.update(t2)
            return r
        return self.both(s, text, g, pick)
    def pick1(self, rows):
        r = rows[0]
        if 'limits' in r: r['limits'] = parse_limits(r['limits'])
        return r
    # --- ops ---
    def do(self, op):
        self.ops += 1
        return getattr(self, 'op_' + op['op'])(**{k: v for k, v in op.items() if k != 'op'})

    def op_time(self, us):
        self.srv.set(self.now + us)
        self.sync_reservations()
    def sync_reservations(self):
        due = [r for r in self.M.reservations.values() if r['state'] == 'held' and r['deadline'] <= self.now]
        if not due: return
        self.released += len(due)
        end = time.time() + 20
        while True:
            self.ctl.execute("SELECT 1 FROM apikey_verify(%s)" % q(self.pulse))
            n = self.ctl.execute("SELECT value FROM apikeys.stats WHERE name = 'reservations_released'").fetchone()[0]
            if n >= self.released: break
            if time.time() > end: self.fail('release', n, self.released)
            time.sleep(0.002)
        for r in due:
            settle(self.M, r['held'], 0, self.now)
            r['state'] = 'released'; r['until'] = self.now + max(r['deadline'] - r['at'], 60_000_000)
            self.M.history.append(dict(ts=self.now, key=r['key'], code='RELEASED', status='allowed', cost=-r['cost'], endpoint=None))
    def op_plan(self, s, id, kind, v):
        if not self.can_write(s): return
        st = self.xact_start(s)
        if kind == 'create':
            def f(T):
                p = T['plans'].get(id)
                if p and p['deleted'] is None: raise Err('23505')
                T['plans'][id] = dict(name=v['name'], max=v['max'], period=v['period'], active=v.get('active', True), deleted=None, life=v.get('life'),
                                      maxkeys=v.get('maxkeys'), rates=p['rates'] if p else {})
            self.write(s, "SELECT id FROM apikey_plan_create(%s, %s, %s, plan_id => %s, is_active => %s, key_lifetime => %s, max_keys_per_user => %s)" % (
                q(v['name']), q(v['max']), q(v['period']), q(id), q(v.get('active', True)), q(v['life'] and '%d hours' % v['life']) if v.get('life') else 'NULL', q(v.get('maxkeys'))), f, lambda r: None)
        elif kind == 'update':
            def f(T):
                p = T['plans'].get(id)
                if not p or p['deleted'] is not None: raise Err('P0002')
                for a, b in v.items():
                    p[dict(max_requests='max', request_period='period', is_active='active', name='name', max_keys_per_user='maxkeys')[a]] = None if b == -1 else b
            self.write(s, "SELECT id FROM apikey_plan_update(%s, %s)" % (q(id), q(v)), f, lambda r: None)
        else:
            raw = kind == 'raw_delete'
            def f(T):
                p = T['plans'].get(id)
                if not p or p['deleted'] is not None:
                    if raw: return None
                    raise Err('P0002')
                p['deleted'] = st
            self.write(s, ("DELETE FROM apikeys.plans WHERE id = %s" if raw else "SELECT id FROM apikey_plan_delete(%s)") % q(id), f, lambda r: None)
    def plan_ok(self, T, id):
        if id is not None and (id not in T['plans'] or T['plans'][id]['deleted'] is not None): raise Err('P0002')
    def op_user(self, s, id, kind, v):
        if not self.can_write(s): return
        st = self.xact_start(s)
        if kind == 'create':
            def f(T):
                u = T['users'].get(id)
                self.plan_ok(T, v['plan'])
                if u and u['deleted'] is None: raise Err('23505')
                n = dict(plan=v['plan'], start=v['start'], disabled=False, deleted=None, rates={}, credits=dict(granted=None, amount=None, every=None, day=None, since=None), subject='new')
                if u: n.update(rates=u['rates'], credits=u['credits'], subject=u['subject'])
                T['users'][id] = n
            r = self.write(s, "SELECT o.id FROM apikey_user_create(%s, plan_id => %s, custom_start => %s) o" % (q(id), q(v['plan']), ts(v['start'])), f, lambda r: None)
            T = self.view(s)
            u = T['users'].get(id)
            if u and u['subject'] == 'new':
                u['subject'] = self.sql(s, "SELECT subject_id::text FROM apikeys.users WHERE id = %s" % q(id))[0]['subject_id']
        elif kind == 'update':
            def f(T):
                u = T['users'].get(id)
                if not u or u['deleted'] is not None: raise Err('P0002')
                self.plan_ok(T, v.get('plan_id'))
                for a, b in v.items():
                    if a == 'plan_id': u['plan'] = b
                    elif a == 'custom_start': u['start'] = b
                    elif a == 'is_disabled': u['disabled'] = b
                self.set_refill(u['credits'], v, (u['subject'], 'user'))
            self.write(s, "SELECT o.id FROM apikey_user_update(%s, %s) o" % (q(id), self.patch(v)), f, lambda r: None)
        else:
            raw = kind == 'raw_delete'
            def f(T):
                u = T['users'].get(id)
                if not u or u['deleted'] is not None:
                    if raw: return None
                    raise Err('P0002')
                u['deleted'] = st
            self.write(s, ("DELETE FROM apikeys.users WHERE id = %s" if raw else "SELECT o.id FROM apikey_user_delete(%s) o") % q(id), f, lambda r: None)
    def patch(self, v):
        v = dict(v)
        for k in ('custom_start', 'expires_at'):
            if v.get(k) is not None: v[k] = to_dt(v[k]).isoformat()
        if v.get('refill_every'): v['refill_every'] = self.every(v['refill_every'])
        return q(v)
    def every(self, e): return '%d months %d days %d microseconds' % tuple(e) if any(e) else None
    def set_refill(self, c, v, subj):
        if 'refill_amount' not in v: return
        new = (v['refill_amount'], tuple(v['refill_every']) if v['refill_every'] else None, v['refill_day'])
        old = (c['amount'], c['every'], c['day'])
        if new == old: return
        if c['granted'] is not None and c['amount'] is not None:
            apply_refill(self.M, credits_limit(c, subj[0], subj[1], 0, self.now))
        c['amount'], c['every'], c['day'] = new
        c['since'] = self.now if c['amount'] else None
    def live_keys(self, T, user):
        return sum(1 for k in T['keys'].values() if k['user'] == user and k['deleted'] is None and (k['expires'] is None or k['expires'] > self.now))
    def check_max(self, T, k):
        if k['user'] is None: return
        p = subject_of(T, k)['plan']
        if p and p['maxkeys'] is not None and self.live_keys(T, k['user']) >= p['maxkeys']: raise Err('23514')
    def user_ok(self, T, u):
        if u is not None and u in T['users'] and T['users'][u]['deleted'] is not None: raise Err('P0002')
    def roles_ok(self, T, roles):
        if any(r not in T['roles'] for r in roles): raise Err('P0002')
    def op_create(self, s, v, n):
        self.keyids += [None] * (n + 1 - len(self.keyids))
        if not self.can_write(s): return
        st = self.xact_start(s)
        new = dict(id='new', name='k%d' % n, user=v['user'], plan=v['plan'], api=v['api'], expires=None if v['expires'] is None else self.now + v['expires'],
                   perms=v['perms'], roles=v['roles'], enabled=v['enabled'], ips=v['ips'], deleted=None, prev=None, prev_until=None, rates={}, fenced=None,
                   md=v['md'], created=st)
        e = v['refill']
        gr = v['credits']
        new['credits'] = dict(granted=gr if gr is not None else (e[0] if e else None), amount=e[0] if e else None, every=tuple(e[1]) if e else None, day=e[2] if e else None, since=self.now if e else None)
        def f(T):
            if v['api'] not in T['apis']:
                if v['api'] != 'default': raise Err('P0002')
                T['apis']['default'] = dict(plan=None)
            self.plan_ok(T, v['plan']); self.user_ok(T, v['user']); self.roles_ok(T, v['roles'])
            self.check_max(T, new)
            p = subject_of(T, new)['plan']
            if new['expires'] is None and p and p.get('life'): new['expires'] = st + p['life'] * 3600 * US
            return None
        r = None
        def pick(rows):
            nonlocal r; r = rows[0]; return None
        T = self.write_view(s)
        self.write(s, "SELECT id::text, api_key FROM apikey_create(%s, %s, %s, %s, expires_at => %s, api_id => %s, permissions => %s, enabled => %s, allowed_ips => %s, roles => %s, credits => %s, refill_amount => %s, refill_every => %s, refill_day => %s)" % (
            q(new['name']), q(v['user']), q(v['plan']), q(v['md']), ts(new['expires'] if v['expires'] is not None else None), q(v['api']), arr(v['perms'], 'text'), q(v['enabled']), arr(v['ips'], 'cidr'), arr(v['roles'], 'text'),
            q(v['credits']), q(e[0] if e else None), q(self.every(e[1])) if e else 'NULL', q(e[2] if e else None)), f, pick)
        if r:
            new['id'], new['secret'] = r['id'], r['api_key']
            self.keyids[n] = r['id']
            self.view(s)['keys'][r['id']] = new
    def key(self, s, n):
        return self.view(s)['keys'].get(self.keyids[n]) if n < len(self.keyids) and self.keyids[n] else None
    def op_key(self, s, k, kind, v):
        if not self.can_write(s) or k >= len(self.keyids) or not self.keyids[k]: return
        id = self.keyids[k]; st = self.xact_start(s)
        def live(T):
            if id not in T['keys'] or T['keys'][id]['deleted'] is not None: raise Err('P0002')
            return T['keys'][id]
        if kind == 'update':
            v = dict(v)
            if v.get('expires_at') is not None: v['expires_at'] += self.now
            def f(T):
                key = live(T)
                self.plan_ok(T, v.get('plan_id'))
                if v.get('user_id') != key['user']: self.user_ok(T, v.get('user_id'))
                if 'api_id' in v and v['api_id'] not in T['apis']: raise Err('P0002')
                self.roles_ok(T, v.get('roles', []))
                old = key['user']
                for a, b in v.items():
                    if a in ('refill_amount', 'refill_every', 'refill_day'): continue
                    key[dict(name='name', user_id='user', plan_id='plan', api_id='api', enabled='enabled', permissions='perms', allowed_ips='ips', expires_at='expires', roles='roles', metadata='md')[a]] = b
                if key['user'] != old:
                    key['user'], u = old, key['user']
                    probe = dict(key, user=u)
                    self.check_max(T, probe)
                    key['user'] = u
                self.set_refill(key['credits'], v, (id, 'key'))
            self.write(s, "SELECT (apikey_update(%s, %s)).id" % (q(id), self.patch(v)), f, lambda r: None)
        elif kind in ('delete', 'raw_delete'):
            raw = kind == 'raw_delete'
            def f(T):
                if raw and (id not in T['keys'] or T['keys'][id]['deleted'] is not None): return None
                live(T)['deleted'] = st
            self.write(s, ("DELETE FROM apikeys.keys WHERE id = %s" if raw else "SELECT o.id FROM apikey_delete(%s) o") % q(id), f, lambda r: None)
        elif kind == 'restore':
            def f(T):
                if id not in T['keys']: raise Err('P0002')
                key = T['keys'][id]
                if key['deleted'] is None: raise Err('55000')
                self.check_max(T, dict(key))
                key['deleted'] = None
            self.write(s, "SELECT o.id FROM apikey_restore(%s) o" % q(id), f, lambda r: None)
        elif kind == 'regenerate':
            got = []
            def f(T):
                key = live(T)
                if v['grace'] and key['fenced']: raise Err('55000')
                key['prev'] = key['secret'] if v['grace'] else None
                key['prev_until'] = (min(x for x in (key['expires'], self.now + v['grace']) if x is not None)) if v['grace'] else None
                key['secret'] = None; key['fenced'] = None
            def pick(r): got.append(r[0]['api_key'])
            self.write(s, "SELECT api_key FROM apikey_regenerate(%s, '%d microseconds')" % (q(id), v['grace']), f, pick)
            if got: self.view(s)['keys'][id]['secret'] = got[0]
        elif kind in ('fence', 'unfence'):
            pass
        elif kind == 'credits':
            def f(T):
                key = live(T)
                return dict(b=self.grant(key['credits'], (id, 'key'), v['o'], v['n']))
            self.write(s, "SELECT apikey_credits(%s, %s, %s) b" % (q(id), q(v['o']), q(v['n'])), f, lambda r: r[0])
    def grant(self, c, subj, o, n):
        l = credits_limit(dict(c, granted=c['granted']) if c['granted'] is not None else dict(granted=0, amount=None, every=None, day=None, since=None), subj[0], subj[1], 0, self.now)
        apply_refill(self.M, l)
        charged = self.M.credit(subj)['charged']
        if c['granted'] is None and o != 'set': raise Err('55000')
        if o == 'subtract' and n > c['granted'] - charged: raise Err('22023')
        was = c['granted']
        c['granted'] = None if n is None else charged + n if o == 'set' else c['granted'] + (n if o == 'add' else -n)
        if was is None and c['granted'] is not None and c['amount']: c['since'] = self.now
        return None if n is None else c['granted'] - charged
    def op_user_credits(self, s, id, o, n):
        if not self.can_write(s): return
        def f(T):
            u = T['users'].get(id)
            if not u or u['deleted'] is not None: raise Err('P0002')
            return dict(b=self.grant(u['credits'], (u['subject'], 'user'), o, n))
        self.write(s, "SELECT apikey_user_credits(%s, %s, %s) b" % (q(id), q(o), q(n)), f, lambda r: r[0])
    def owner(self, T, owner, id):
        if owner == 'plan': return T['plans'].get(id)
        if owner == 'user': return T['users'].get(id)
        return T['keys'].get(self.keyids[id]) if id < len(self.keyids) and self.keyids[id] else None
    def op_limit(self, s, owner, id, name, v):
        if not self.can_write(s): return
        if owner == 'key' and (id >= len(self.keyids) or not self.keyids[id]): return
        oid = self.keyids[id] if owner == 'key' else id
        def f(T):
            o = self.owner(T, owner, id)
            if o is None: raise Err('P0002')
            if v is None:
                if o['deleted'] is not None: raise Err('P0002')
                if name not in o['rates']: raise Err('P0002')
                del o['rates'][name]
            else:
                if o['deleted'] is not None: raise Err('P0002')
                o['rates'][name] = dict(amount=v['amount'], period=v['period'], burst=v['burst'] or v['amount'], auto=v['auto'])
        if v is None: text = "SELECT o.name FROM apikey_limit_delete(%s, %s_id => %s) o" % (q(name), owner, q(oid))
        else: text = "SELECT o.name FROM apikey_limit_set(%s, %d, '%d microseconds', %s, %s, %s_id => %s) o" % (q(name), v['amount'], v['period'], q(v['burst']), q(v['auto']), owner, q(oid))
        self.write(s, text, f, lambda r: None)
    def op_api(self, s, id, plan):
        if not self.can_write(s): return
        def f(T):
            if plan is not None and plan not in T['plans']: raise Err('23503')
            T['apis'][id] = dict(plan=plan)
        self.write(s, "INSERT INTO apikeys.apis (id, default_plan_id) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET default_plan_id = excluded.default_plan_id" % (q(id), q(plan)), f, lambda r: None)
    def op_role(self, s, id, perms):
        if not self.can_write(s): return
        def f(T): T['roles'][id] = perms
        self.write(s, "INSERT INTO apikeys.roles (name, permissions) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET permissions = excluded.permissions" % (q(id), arr(perms, 'text')), f, lambda r: None)
    # transactions
    def op_begin(self, s, mode):
        if self.S[s].tx: return
        self.sql(s, 'BEGIN ' + mode)
        self.S[s].tx = dict(mode=mode, T=None, start=self.now, refunds=[[]], save=[])
    def op_end(self, s, commit):
        x = self.S[s].tx
        if not x: return
        self.sql(s, 'COMMIT' if commit else 'ROLLBACK')
        if commit:
            if x['T'] is not None: self.T = x['T']
            self.S[s].tx = None
        else: self.abort(s)
    def op_savepoint(self, s):
        x = self.S[s].tx
        if not x: return
        self.sql(s, 'SAVEPOINT s%d' % len(x['refunds']))
        x['save'].append(copy(x['T']) if x['T'] is not None else None); x['refunds'].append([])
    def op_rollback_to(self, s, n, release):
        x = self.S[s].tx
        if not x or len(x['refunds']) <= n: return
        n = max(n, 1)
        if len(x['refunds']) <= n: return
        if release:
            self.sql(s, 'RELEASE s%d' % n)
            keep = sum(x['refunds'][n:], [])
            x['refunds'] = x['refunds'][:n]; x['refunds'][-1].extend(keep); x['save'] = x['save'][:n - 1]
        else:
            self.sql(s, 'ROLLBACK TO s%d' % n)
            for level in reversed(x['refunds'][n:]):
                for h in reversed(level): give_back(self.M, h, self.now)
            if x['T'] is not None: x['T'] = copy(x['save'][n - 1]) if x['save'][n - 1] is not None else copy(self.T)
            x['refunds'] = x['refunds'][:n] + [[]]; x['save'] = x['save'][:n]
    # requests
    def secret(self, s, k, which):
        key = None
        if which == 'malformed': return "!nonsense"
        if which == 'unknown': return UNKNOWN
        if k < len(self.keyids) and self.keyids[k]:
            key = self.T['keys'].get(self.keyids[k]) or self.view(s)['keys'].get(self.keyids[k])
            for o in self.S:
                if key is None and o.tx and o.tx['T']: key = o.tx['T']['keys'].get(self.keyids[k])
        if key is None: return None
        if which == 'prev': return key['prev'] or key['secret']
        if which == 'own' : key = self.view(s)['keys'].get(self.keyids[k], key)
        return key['secret']
    def op_verify(self, s, k, which, cost, perms, api, ip, charges, refund, endpoint):
        sec = self.secret(s, k, which)
        if sec is None: return
        T = self.view(s)
        h = None
        def f():
            nonlocal h
            a, h = verify(T, self.M, self.now, sec, cost, perms, api, ip, charges, endpoint)
            return a
        self.both(s, "SELECT %s FROM apikey_verify(%s, %s, 'GET', %s, %d, %s, %s, NULL, %s, %s) v" % (VCOLS, q(sec), q(endpoint), q(ip), cost, q(perms), q(api), q('refund' if refund else 'keep'), q(charges)), f, self.pick1)
        if h and refund and self.S[s].tx: self.S[s].tx['refunds'][-1].append(h)
    def op_many(self, s, ks, ip):
        secs = [self.secret(s, k, w) for k, w in ks]
        T = self.view(s)
        def f(): return [verify(T, self.M, self.now, x, ip=ip, endpoint='many')[0] for x in secs]
        def pick(rows):
            for r in rows: r['limits'] = parse_limits(r['limits'])
            return rows
        self.both(s, "SELECT %s FROM apikey_verify_many(%s, 'many', NULL, %s) v" % (VCOLS, arr(secs, 'text'), q(ip)), f, pick)
    def op_reserve(self, s, k, cost, ttl, n):
        self.resids += [None] * (n + 1 - len(self.resids))
        sec = self.secret(s, k, 'own')
        if sec is None: return
        T = self.view(s); h = None
        def f():
            nonlocal h
            a, h = verify(T, self.M, self.now, sec, cost, endpoint='res', reserve=ttl)
            a['deadline'] = self.now + ttl if h else None
            a['has'] = h is not None
            return a
        got = self.both(s, "SELECT %s, v.reservation_id::text, v.reservation_id IS NOT NULL has, t.us(v.deadline) deadline FROM apikey_reserve(%s, %d, '%d microseconds', 'res') v" % (VCOLS, q(sec), cost, ttl), f, self.pick1)
        if h:
            self.resids[n] = got['reservation_id']
            self.M.reservations[got['reservation_id']] = dict(held=h['held'], cost=cost, at=self.now, deadline=self.now + ttl, state='held', key=h['key'])
    def op_settle(self, s, r, share):
        if r >= len(self.resids) or not self.resids[r]: return
        id = self.resids[r]; T = self.view(s)
        def f():
            x = self.M.reservations[id]
            actual = x['cost'] * share // 100
            if x['state'] == 'lost': raise Err('P0002')
            if x['state'] == 'settled': raise Err('55000' if x['deadline'] > self.now else 'P0002')
            if x['state'] == 'released': raise Err('55000' if x['until'] > self.now else 'P0002')
            if actual > x['cost']: raise Err('22023')
            settle(self.M, x['held'], actual, self.now)
            x['state'] = 'settled'
            self.M.history.append(dict(ts=self.now, key=x['key'], code='SETTLED', status='allowed', cost=actual - x['cost'], endpoint=None))
            a = dict(NULLS, code='VALID', valid=True)
            key = T['keys'].get(x['key'])
            if key:
                sub = subject_of(T, key)
                a.update(identity(key, sub))
                L = limits_of(T, key, sub, 0, None, False, self.now)
                a.update(metered(self.M, L, 'VALID', self.now, None, False, False))
            return a
        self.both(s, "SELECT %s FROM apikey_settle(%s, %d) v" % (VCOLS, q(id), self.M.reservations[id]['cost'] * share // 100), f, self.pick1)
    def op_adjust(self, s, k, delta):
        if self.S[s].tx and self.S[s].tx['mode'].startswith('READ ONLY'): return
        if k >= len(self.keyids) or not self.keyids[k]: return
        id = self.keyids[k]; T = self.view(s)
        h = None
        def f():
            nonlocal h
            key = T['keys'].get(id)
            if key is None: raise Err('P0002')
            L = limits_of(T, key, subject_of(T, key), 0, None, False, self.now)
            at = L[0]['at']; n = self.M.counts.get(at, 0) - self.M.lost.get(at, 0)
            d = -n if delta is None else delta
            if n + d < 0: raise Err('22023')
            self.M.counts[at] = self.M.counts.get(at, 0) + d
            h = dict(held=[dict(kind='quota', at=at, cost=d, now=self.now)], request=None, key=id)
            return usage_report(T, self.M, self.now, key)
        self.both(s, "SELECT %s FROM apikey_usage_adjust(%s, %s) v" % (UCOLS, q(id), q(delta)), f, self.pick1)
        if h and self.S[s].tx: self.S[s].tx['refunds'][-1].append(h)
    def op_usage(self, s, k):
        if k >= len(self.keyids) or not self.keyids[k]: return
        id = self.keyids[k]; T = self.view(s)
        def f():
            if id not in T['keys']: raise Err('P0002')
            return usage_report(T, self.M, self.now, T['keys'][id])
        self.both(s, "SELECT %s FROM apikey_usage(%s) v" % (UCOLS, q(id)), f, self.pick1)
    def op_user_usage(self, s, id):
        T = self.view(s)
        def f():
            if id not in T['users']: raise Err('P0002')
            return user_usage_report(T, self.M, self.now, id)
        self.both(s, "SELECT %s FROM apikey_user_usage(%s) v" % (UCOLS, q(id)), f, self.pick1)
    # pressure and failure
    def op_evict(self, s):
        if not hasattr(self, 'fillers'):
            self.ctl.execute("SELECT 1")
            self.ctl.execute("INSERT INTO t.fillers SELECT id, api_key FROM generate_series(1, 1100) i, LATERAL apikey_create('filler' || i, 'filler', api_id => 'filler')")
            self.fillers = True
        self.log.append((self.now, 'c', '-- evict'))
        n = self.rng.randrange(1100)
        self.ctl.execute("SELECT count(*) FROM (SELECT api_key FROM t.fillers OFFSET %d) f, LATERAL apikey_verify(f.api_key) v" % (n // 3))
    def op_replace_worker(self, s):
        self.log.append((self.now, 'c', '-- replace worker'))
        self.ctl.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE backend_type = 'apikeys worker' AND datname = current_database()")
        self.forget_arrivals()
    def forget_arrivals(self):
        """Of a reservation that is held while the meter is closed, it is forgotten
        how far ahead its rates were: less is given back then."""
        for r in self.M.reservations.values():
            for h in r['held']:
                if h['kind'] == 'rate': h['known'] = False
    def op_flush(self, s):
        self.check_history()
    def op_restart(self, s, abrupt):
        self.log.append((self.now, 'c', '-- restart'))
        for i in range(self.nsess):
            if self.S[i].tx:
                if abrupt: self.abort(i)
                else: self.op_end(i, False)
        for x in self.S: 
            if not abrupt: x.conn.close()
        self.ctl.close()
        self.srv.stop('fast'); self.srv.start()
        self.connect()
        self.M.stats = {}; self.released = 0
        for r in self.M.reservations.values():
            if r['state'] != 'held': r['state'] = 'lost'
        self.forget_arrivals()
        self.check_usage_table()
        self.ctl.execute("SELECT count(*) FROM apikey_verify_many(ARRAY[%s])" % q(UNKNOWN))
    def check_usage_table(self):
        rows = self.ctl.execute("SELECT subject_id::text, subject, period, t.us(period_start), current_usage, charged, ceiling FROM apikeys.usage").fetchall()
        got = {(r[0], r[1], r[2], r[3]): r[4:6] for r in rows}
        fill = self.filler_ids()
        alive = set(self.T['keys']) | {u['subject'] for u in self.T['users'].values()}
        for k, n in self.M.counts.items():
            if k[0] not in alive: continue
            self.compared += 1
            g = got.get(k)
            if (g or (0, 0)) != (n, n): self.fail('usage table %s' % (k,), g, n)
        for k, c in self.M.credits.items():
            if k[0] not in alive: continue
            g = got.get((k[0], k[1], 'credits', None))
            self.compared += 1
            if (g or (0, 0)) != (c['spent'], c['charged']): self.fail('usage table credits %s' % (k,), g, c)
        for k in got:
            if k[0] in fill: continue
            if k[2] == 'credits':
                if k[:2] not in self.M.credits and got[k] != (0, 0): self.fail('usage row of nobody', k, got[k])
            elif k not in self.M.counts and got[k] != (0, 0): self.fail('usage row of nobody', k, got[k])
    def filler_ids(self):
        return {r[0] for r in self.ctl.execute("SELECT id::text FROM t.fillers").fetchall()}
    def poll(self, f, what, seconds=15):
        end = time.time() + seconds
        while True:
            got, want = f()
            if got == want: self.compared += 1; return
            if time.time() > end: self.fail(what, got, want)
            time.sleep(0.01)
    def check_history(self):
        want = sorted((h['ts'], h['key'], h['code'], h['status'], h['cost'], h['endpoint'] or '') for h in self.M.history)
        def f():
            fl = "AND key_id NOT IN (SELECT id FROM t.fillers)"
            n = self.ctl.execute("SELECT count(*) FROM apikeys.requests WHERE true " + fl).fetchone()[0]
            return n, len(want)
        self.poll(f, 'history rows')
        fl = "AND key_id NOT IN (SELECT id FROM t.fillers)"
        for attempt in range(2):
            got = sorted(tuple(r) for r in self.ctl.execute("SELECT t.us(timestamp), key_id::text, code, status, cost, coalesce(endpoint, '') FROM apikeys.requests WHERE true " + fl).fetchall())
            # a partition that is being made hides its rows for a moment
            a, b = Counter(got) - Counter(want), Counter(want) - Counter(got)
            if not a and not b: break
            time.sleep(0.3)
        self.compared += len(want)
        if a or b: self.fail('history', sorted(a)[:5], sorted(b)[:5])
    def op_check(self, s):
        """all of it, committed"""
        self.check_history()
        M, T = self.M, self.T
        fl = self.filler_ids()
        # live usage
        rows = self.ctl.execute("SELECT subject, subject_id::text, key_id::text, user_id, plan_id, period, t.us(period_start), t.us(reset_time), current_usage, \"limit\", remaining FROM apikeys.live_usage").fetchall()
        seen = {}
        for r in rows:
            if r[1] in fl: continue
            subject, sid, key_id, user_id, plan_id, period, start, reset, cu, lim, rem = r
            seen[(sid, subject, period, start)] = r
            self.compared += 1
            if period == 'credits':
                c = M.credits.get((sid, subject), dict(spent=0))
                if cu != c['spent']: self.fail('live credits', r, c)
                o = T['keys'].get(sid) if subject == 'key' else next((u for u in T['users'].values() if u['subject'] == sid), None)
                if o is not None:
                    w = None if o['credits']['granted'] is None else max(0, o['credits']['granted'] - charged_of(M, credits_limit(o['credits'], sid, subject, 0, self.now)))
                    if rem != w: self.fail('live credits balance', r, w)
                continue
            n = M.counts.get((sid, subject, period, start), 0)
            if cu != n and (subject == 'user' or sid in T['keys']): self.fail('live usage', r, n)
            if subject == 'key' and sid in T['keys']:
                k = T['keys'][sid]; sub = subject_of(T, k)
                plan = sub['plan'] if sub['kind'] == 'key' else None
                wl = plan['max'] if plan and plan['period'] == period else None
                want = (sub['plan_id'] if plan else None, wl, None if wl is None else max(wl - n, 0))
                if (plan_id, lim, rem) != want: self.fail('live limit', r, want)
            elif subject == 'user':
                u = next((u for u in T['users'].values() if u['subject'] == sid), None)
                if u:
                    p = T['plans'].get(u['plan'])
                    wl = p['max'] if p and p['period'] == period else None
                    wr = None if wl is None else max(wl - n, 0)
                    if (lim, rem) != (wl, wr): self.fail('live limit', r, (wl, wr))
        for k, n in M.counts.items():
            if n and k not in seen and (k[0] in T['keys'] or k[1] == 'user' and k[0] in {u['subject'] for u in T['users'].values()}): self.fail('live usage has no', k, n)
        # usage functions
        for k in T['keys'].values():
            got = self.sql(None, "SELECT %s FROM apikey_usage(%s) v" % (UCOLS, q(k['id'])))
            self.same('usage', self.pick1(got), usage_report(T, M, self.now, k))
        for u in T['users']:
            got = self.sql(None, "SELECT %s FROM apikey_user_usage(%s) v" % (UCOLS, q(u)))
            self.same('user usage', self.pick1(got), user_usage_report(T, M, self.now, u))
        # ledger
        if self.writer() is None:
            for subj, c in list(M.credits.items()):
                o = T['keys'].get(subj[0]) if subj[1] == 'key' else next((u for u in T['users'].values() if u['subject'] == subj[0]), None)
                if o is None or o['credits']['granted'] is None: continue
                l = credits_limit(o['credits'], subj[0], subj[1], 0, self.now)
                if l['due'] > c['refilled']: continue
                def f():
                    x = self.ctl.execute("SELECT coalesce(sum(amount), 0) FROM apikeys.ledger WHERE subject_id = %s AND kind = 'credits'" % q(subj[0])).fetchone()[0]
                    return int(x) - c['spent'], o['credits']['granted'] - c['charged']
                self.poll(f, 'ledger of %s' % (subj,))
        self.check_lists()
    def op_rollups(self, s):
        self.check_history()
        want = {}
        for h in self.M.history:
            for step, size in (('hour', 3600*US), ('day', 86400*US)):
                x = want.setdefault((h['key'], step, h['ts'] // size * size, 'VALID' if h['code'] in ('SETTLED', 'RELEASED') else h['code']), [0, 0])
                x[0] += 0 if h['code'] in ('SETTLED', 'RELEASED') else 1
                x[1] += h['cost'] if h['status'] == 'allowed' else 0
        want = {k: tuple(v) for k, v in want.items()}
        fl = "WHERE key_id NOT IN (SELECT id FROM t.fillers)"
        got = {}
        for r in self.ctl.execute("""SELECT key_id::text, step, t.us(start), code, sum(requests)::bigint, sum(cost)::bigint FROM (SELECT key_id, step, start, code, requests, cost FROM apikeys.rollups
              UNION ALL SELECT u.k, x.step, date_trunc(x.step, j.start, 'UTC'), j.code, u.r, u.o FROM apikeys.rollup_journal j, unnest(key_ids, requests, costs) u(k, r, o), (VALUES ('hour'), ('day')) x(step)) a """
              + fl + " GROUP BY 1, 2, 3, 4").fetchall(): got[tuple(r[:4])] = tuple(r[4:])
        empty = self.ctl.execute("SELECT count(*) FROM apikeys.rollup_journal").fetchone()[0] == 0
        alive = set(self.T['keys'])
        want = {k: v for k, v in want.items() if k[0] in alive and v != (0, 0)}; got = {k: v for k, v in got.items() if k[0] in alive}
        self.compared += len(want)
        if got != want:
            self.fail('rollups', {k: v for k, v in got.items() if want.get(k) != v}, {k: v for k, v in want.items() if got.get(k) != v})
        if not empty: return
        # series
        rng = self.rng
        for _ in range(4):
            if not self.T['keys']: break
            k = rng.choice(list(self.T['keys']))
            step = rng.choice(['hour', 'day', 'week', 'month', 'year'])
            to = self.now - rng.choice([0, 0, 3600*US, 40*86400*US]); fr = to - rng.choice([1, 3600*US, 86400*US*3, 86400*US*70])
            byuser = rng.random() < 0.3 and self.T['keys'][k]['user'] is not None
            ids = {k} if not byuser else {x['id'] for x in self.T['keys'].values() if x['user'] == self.T['keys'][k]['user']}
            rows = self.sql(None, "SELECT t.us(bucket_start) s, t.us(bucket_end) e, allowed, denied, cost, outcomes FROM apikey_%susage_series(%s, %s, %s, %s)" % (
                'user_' if byuser else '', q(self.T['keys'][k]['user'] if byuser else k), q(step), ts(fr), ts(to)))
            w = []; a, b = period_at(step, None, fr) if step in FIXED else months_at(1 if step == 'month' else 12, 0, fr)
            while a < to:
                hs = [h for h in self.M.history if h['key'] in ids and a <= h['ts'] < b]
                real = [h for h in hs if h['code'] not in ('SETTLED', 'RELEASED')]
                out = {}
                for h in real: out[h['code']] = out.get(h['code'], 0) + 1
                w.append(dict(s=a, e=b, allowed=out.get('VALID', 0), denied=len(real) - out.get('VALID', 0), cost=sum(h['cost'] for h in hs if h['status'] == 'allowed'), outcomes=out))
                a, b = period_at(step, None, b)
            self.same('series %s %s %s' % (step, fr, to), rows, w)
    def check_lists(self):
        rng, T = self.rng, self.T
        fl = self.filler_ids()
        for _ in range(3):
            f = dict(user_id=rng.choice([None, None, 'u0', 'u1', 'nobody', 'x']), plan_id=rng.choice([None, None, 'p0', 'p1']), api_id=rng.choice([None, None, 'default', 'a1']),
                     metadata=rng.choice([None, None, {'a': 1}, {'b': {'c': 2}}, {}]), include_deleted=rng.random() < 0.5)
            if f['api_id'] is None and f['user_id'] is None and fl: f['api_id'] = 'default'
            def has(md, w):
                return all(k in md and (has(md[k], v) if isinstance(v, dict) and isinstance(md[k], dict) else md[k] == v) for k, v in w.items())
            want = sorted(k['id'] for k in T['keys'].values() if (f['user_id'] is None or k['user'] == f['user_id']) and (f['plan_id'] is None or k['plan'] == f['plan_id'])
                          and (f['api_id'] is None or k['api'] == f['api_id']) and (f['metadata'] is None or has(k['md'], f['metadata'])) and (f['include_deleted'] or k['deleted'] is None))
            args = ', '.join('%s => %s' % (a, q(b)) for a, b in f.items())
            self.same('count ' + args, self.sql(None, 'SELECT apikey_count(%s) n' % args)[0]['n'], len(want))
            size = rng.randint(1, 4); got = []; after = None; off = 0; bystep = rng.random() < 0.5
            while True:
                page = self.sql(None, 'SELECT id::text FROM apikey_list(%s, page_size => %d, %s) WITH ORDINALITY ORDER BY ordinality' % (args, size, 'page_offset => %d' % off if bystep else 'after => %s' % q(after)))
                if not page: break
                got += [p['id'] for p in page]; after = got[-1]; off += len(page)
            self.same('list ' + args, got, want)
        if T['keys']:
            k = rng.choice(list(T['keys'])); size = rng.randint(1, 50)
            byuser = rng.random() < 0.3 and T['keys'][k]['user'] is not None
            ids = {k} if not byuser else {x['id'] for x in T['keys'].values() if x['user'] == T['keys'][k]['user']}
            got = []; before = None
            while True:
                page = self.sql(None, "SELECT t.us(timestamp) ts, key_id::text, code, cost FROM apikey_%srequests(%s, %d, %s)" % ('user_' if byuser else '', q(T['keys'][k]['user'] if byuser else k), size, ts(before)))
                if not page: break
                got += [(p['ts'], p['key_id'], p['code'], p['cost']) for p in page]; before = page[-1]['ts']
            want = sorted((h['ts'], h['key'], h['code'], h['cost']) for h in self.M.history if h['key'] in ids)
            self.same('requests paged', sorted(got), want)
            self.same('requests order', [g[0] for g in got], sorted((g[0] for g in got), reverse=True))

# a well-formed secret that nobody has
B62 = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
def make_secret(body):
    c = zlib.crc32(body.encode()); t = ''
    for _ in range(6): c, r = divmod(c, 62); t = B62[r] + t
    return body + t
UNKNOWN = make_secret('ak_' + 'x' * 32)

# --- random operations ---
def gen(run):
    rng = run.rng
    R = rng.random
    s = rng.randrange(run.nsess)
    nk = max(len(run.keyids), 1)
    # busy few
    k = rng.randrange(nk) if R() < 0.5 else max(nk - 1 - int(rng.expovariate(0.5)), 0)
    plan = lambda: rng.choice(['p0', 'p1', 'p2', 'p3'])
    user = lambda: rng.choice(['u0', 'u1', 'u2'])
    def amount(): return rng.choice([None, 0, 1, 3, 10, 63, 64, 65, 100, 640, 1000, 10**6, 2**40])
    period = lambda: rng.choice(['minute', 'hour', 'day', 'week', 'month', 'year'])
    def refill():
        r = rng.randrange(5)
        e, d = [((rng.choice([1, 3, 12]), 0, 0), rng.choice([None, 1, 15, 29, 31])), ((0, rng.choice([7, 14]), 0), rng.choice([None, 1, 5, 7])), ((0, rng.choice([1, 3]), 0), None),
                ((0, 0, rng.choice([60, 3600, 6*3600]) * US), None), ((0, 1, 3600 * US), None)][r]
        return [rng.choice([1, 50, 500]), list(e), d]
    def anchor(): return rng.choice([None, None, from_dt(datetime(2024, 1, 31, 9, 30, tzinfo=timezone.utc)), from_dt(datetime(2024, 2, 29, 0, 0, 0, 1, tzinfo=timezone.utc)),
                                     run.now // 60000000 * 60000000 - 1, from_dt(datetime(2030, 12, 30, 23, 59, 59, 999999, tzinfo=timezone.utc)), from_dt(datetime(1999, 3, 31, 5, tzinfo=timezone.utc))])
    def charges():
        if R() < 0.6: return None
        c = {}
        for n in ('quota', 'credits', 'ra', 'rb', 'rc'):
            if R() < (0.25 if n in ('quota', 'credits') else 0.15): c[n] = rng.choice([0, 1, 2, 5, 50])
        if R() < 0.4: c['request_id'] = 'r%d' % rng.randrange(6)
        return c
    x = R()
    if x < 0.42:
        return dict(op='verify', s=s, k=k, which=rng.choices(['own', 'cur', 'prev', 'unknown', 'malformed'], [60, 10, 10, 1, 1])[0], cost=rng.choices([1, 0, 2, 3, 10, 60, 70, 700, 10**6, 2**31], [50, 6, 8, 8, 6, 3, 3, 1, 1, 1])[0],
                    perms=rng.choices([None, 'read', 'docs.a', 'read AND NOT docs.a', 'NOT read OR docs.a'], [80, 5, 5, 3, 3])[0], api=rng.choices([None, 'default', 'a1'], [85, 10, 5])[0],
                    ip=rng.choices([None, '10.1.2.3', '::ffff:10.1.2.3', '2001:db8::1'], [50, 30, 10, 10])[0], charges=charges(), refund=R() < (0.5 if run.S[s].tx else 0.05), endpoint='e%d' % rng.randrange(4))
    if x < 0.44: return dict(op='many', s=s, ks=[(rng.randrange(nk), rng.choice(['own', 'own', 'own', 'unknown', 'malformed'])) for _ in range(rng.randint(0, 8))], ip=rng.choice([None, '10.1.2.3']))
    if x < 0.48: return dict(op='reserve', s=s, k=k, n=len(run.resids), cost=rng.choice([1, 2, 5, 20, 100]), ttl=rng.choice([1, 1000, US, 60*US, 600*US, 3600*US, 7*86400*US]))
    if x < 0.52: return dict(op='settle', s=s, r=max(len(run.resids) - 1 - int(rng.expovariate(0.3)), 0), share=rng.choice([0, 30, 100, 100, 50, 120]))
    if x < 0.54: return dict(op='adjust', s=s, k=k, delta=rng.choice([None, None, 1, 5, -1, -3, 60, 1000]))
    if x < 0.58: return dict(op='usage', s=s, k=k) if R() < 0.7 else dict(op='user_usage', s=s, id=user())
    if x < 0.70:
        r = R()
        if r < 0.35: d = rng.choice([1, 10, 999, 1000, 20000, 50000])
        elif r < 0.6: d = int(rng.expovariate(1 / (2 * US)))
        elif r < 0.75: d = int(rng.expovariate(1 / (600 * US)))
        elif r < 0.82: d = int(rng.expovariate(1 / (8 * 3600 * US)))
        elif r < 0.90:
            un = rng.choice(['minute', 'hour', 'hour', 'day', 'day', 'week', 'month', 'year'] if R() < 0.2 else ['minute', 'hour', 'day'])
            e = period_at(un, rng.choice([None] + [u['start'] for u in run.T['users'].values()]), run.now)[1]
            d = max(e - run.now + rng.choice([-1, 0, 1, -US, 1000]), 0)
        elif r < 0.97: d = int(rng.expovariate(1 / (20 * 86400 * US)))
        else: d = 100
        return dict(op='time', us=d)
    if x < 0.78:
        if run.S[s].tx is None: return dict(op='begin', s=s, mode=rng.choices(['', 'READ ONLY', 'ISOLATION LEVEL REPEATABLE READ'], [60, 15, 25])[0])
        y = R()
        if y < 0.25: return dict(op='savepoint', s=s)
        if y < 0.45: return dict(op='rollback_to', s=s, n=rng.randint(1, max(1, len(run.S[s].tx['refunds']) - 1)), release=R() < 0.4)
        return dict(op='end', s=s, commit=R() < 0.55)
    if x < 0.82 or nk < 4:
        return dict(op='create', s=s, n=len(run.keyids), v=dict(user=rng.choice([None, 'u0', 'u1', 'u2', 'nobody']), plan=rng.choice([None, None, plan()]), api=rng.choices(['default', 'a1', 'zz'], [70, 27, 3])[0], expires=rng.choice([None]*8 + [3600*US, 86400*US*40]),
                    perms=rng.choice([[], ['read'], ['docs.*'], ['*']]), roles=rng.choice([[], ['ro']]) if 'ro' in run.view(s)['roles'] else [], enabled=R() < 0.97, ips=rng.choice([None]*7 + [['10.0.0.0/8'], ['2001:db8::/32', '10.1.2.3/32']]),
                    credits=rng.choice([None, None, None, 0, 40, 500]), refill=rng.choice([None, None, None, refill()]), md=rng.choice([{}, {'a': 1}, {'a': 2, 'b': {'c': 2}}])))
    if x < 0.87:
        kind = rng.choices(['update', 'delete', 'raw_delete', 'restore', 'regenerate', 'credits'], [40, 6, 4, 15, 15, 25])[0]
        v = None
        if kind == 'update':
            f = rng.choice(['user_id', 'plan_id', 'api_id', 'enabled', 'permissions', 'allowed_ips', 'expires_at', 'roles', 'refill', 'metadata'])
            if f == 'refill':
                r = refill() if R() < 0.7 else [None, None, None]
                v = dict(refill_amount=r[0], refill_every=r[1], refill_day=r[2])
            else:
                v = {f: dict(user_id=lambda: rng.choice([None, 'u0', 'u1', 'nobody']), plan_id=lambda: rng.choice([None, plan()]), api_id=lambda: rng.choice(['default', 'a1']), enabled=lambda: R() < 0.8,
                     permissions=lambda: rng.choice([['read'], ['docs.a']]), allowed_ips=lambda: rng.choice([None, None, ['10.0.0.0/8']]), expires_at=lambda: rng.choice([None, None, -1, 0, 1, 60*US, 86400*US]), roles=lambda: ['ro'] if 'ro' in run.view(s)['roles'] else [], metadata=lambda: {'a': rng.randrange(2)})[f]()}
        elif kind == 'regenerate': v = dict(grace=rng.choice([0, 1, 60*US, 3600*US, 40*86400*US]))
        elif kind == 'credits':
            o = rng.choice(['set', 'add', 'add', 'subtract']); v = dict(o=o, n=rng.choice([0, 1, 30, 300] + ([None] if o == 'set' else [])))
        return dict(op='key', s=s, k=k, kind=kind, v=v)
    if x < 0.90:
        kind = rng.choices(['create', 'update', 'delete', 'raw_delete'], [20, 70, 4, 3])[0]
        v = None
        if kind == 'create': v = dict(name='Plan', max=amount(), period=period(), active=R() < 0.95, maxkeys=rng.choice([None, None, None, 3]), life=rng.choice([None, None, 48]))
        if kind == 'update': v = rng.choice([dict(max_requests=amount()), dict(max_requests=amount()), dict(max_requests=-1), dict(request_period=period()), dict(is_active=R() < 0.85), dict(max_keys_per_user=rng.choice([None, 2, 5]))])
        return dict(op='plan', s=s, id=plan(), kind=kind, v=v)
    if x < 0.925:
        kind = rng.choices(['create', 'update', 'delete', 'raw_delete'], [25, 60, 4, 3])[0]
        v = None
        if kind == 'create': v = dict(plan=rng.choice([None, plan()]), start=anchor())
        if kind == 'update':
            r = refill() if R() < 0.7 else [None, None, None]
            v = rng.choice([dict(plan_id=rng.choice([None, plan(), plan()])), dict(custom_start=anchor()), dict(is_disabled=R() < 0.15), dict(refill_amount=r[0], refill_every=r[1], refill_day=r[2])])
        return dict(op='user', s=s, id=user(), kind=kind, v=v)
    if x < 0.935:
        o = rng.choice(['set', 'add', 'subtract']); return dict(op='user_credits', s=s, id=user(), o=o, n=rng.choice([0, 1, 30, 300] + ([None, None] if o == 'set' else [])))
    if x < 0.965:
        ow = rng.choice(['plan', 'user', 'key'])
        v = None if R() < 0.25 else dict(amount=rng.choice([1, 2, 3, 7, 60, 1000, 999983]), period=rng.choice([1, 1000, US, 10*US, 60*US, 3600*US, 86400*US*3]), burst=rng.choice([None, None, 1, 5, 100]), auto=R() < 0.75)
        if v and v['amount'] > v['period'] * 1000: v['amount'] = 3
        return dict(op='limit', s=s, owner=ow, id=dict(plan=plan(), user=user(), key=k)[ow], name=rng.choice(['ra', 'rb', 'rc']), v=v)
    if x < 0.97: return dict(op='api', s=s, id=rng.choice(['default', 'a1']), plan=rng.choice([None, plan()]) if run.T['plans'] else None)
    if x < 0.972: return dict(op='role', s=s, id='ro', perms=rng.choice([['read'], ['docs.a', 'read'], []]))
    if x < 0.977: return dict(op='evict', s=s)
    if x < 0.979: return dict(op='replace_worker', s=s)
    if x < 0.9795: return dict(op='restart', s=s, abrupt=R() < 0.5)
    if x < 0.985: return dict(op='check', s=s)
    if x < 0.986: return dict(op='rollups', s=s)
    return dict(op='flush', s=s)

def prologue(run):
    rng = run.rng; out = []
    am = lambda: rng.choice([None, 3, 10, 63, 64, 100, 640, 1000, 6400, 10**6])
    for i in range(4): out.append(dict(op='plan', s=0, id='p%d' % i, kind='create', v=dict(name='Plan', max=am(), period=rng.choice(['minute', 'hour', 'day', 'week', 'month', 'year']))))
    for i in range(3): out.append(dict(op='user', s=0, id='u%d' % i, kind='create', v=dict(plan=rng.choice([None, 'p0', 'p1', 'p2']), start=None)))
    out.append(dict(op='api', s=0, id='a1', plan=rng.choice([None, 'p3'])))
    for i in range(7): out.append(dict(op='create', s=0, n=i, v=dict(user=rng.choice([None, 'u0', 'u0', 'u1', 'u2']), plan=rng.choice([None, None, 'p0', 'p1']), api=rng.choice(['default', 'a1']), expires=None, perms=['read'], roles=[], enabled=True, ips=None,
        credits=rng.choice([None, None, None, 500, 5000]), refill=None, md={})))
    for i in range(3):
        ow = rng.choice(['plan', 'user', 'key'])
        out.append(dict(op='limit', s=0, owner=ow, id=dict(plan='p%d' % rng.randrange(4), user='u%d' % rng.randrange(3), key=rng.randrange(7))[ow], name=rng.choice(['ra', 'rb', 'rc']),
                        v=dict(amount=rng.choice([2, 7, 60, 1000]), period=rng.choice([US, 60*US, 3600*US]), burst=rng.choice([None, 5, 100]), auto=rng.random() < 0.75)))
    for o in out: run.do(o)
    return out

def note_limits(run):
    for k in run.T['keys'].values():
        sub = subject_of(run.T, k)
        L = limits_of(run.T, k, sub, 0, None, False, run.now)
        at = L[0]['at']
        run.M.top.setdefault(at, set()).add(L[0]['amount'])

def crash(run, touch):
    """-> after a crash nobody has more than the limit, and nobody lost more than a step"""
    rng = run.rng
    for i in range(run.nsess): run.do(dict(op='end', s=i, commit=True))
    M, T = run.M, run.T
    if touch:
        for n in range(len(run.keyids)): run.do(dict(op='verify', s=0, k=n, which='own', cost=1, perms=None, api=None, ip='10.1.2.3', charges={}, refund=False, endpoint='touch'))
        note_limits(run)
        time.sleep(rng.choice([0.03, 0.1, 0.3]))
        for n in range(len(run.keyids)):
            if rng.random() < 0.5: run.do(dict(op='verify', s=0, k=n, which='own', cost=rng.choice([1, 2, 7]), perms=None, api=None, ip='10.1.2.3', charges={}, refund=False, endpoint='touch'))
    before = {}
    for k in T['keys'].values():
        L = limits_of(T, k, subject_of(T, k), 0, None, True, run.now)
        for l in L:
            if l['kind'] == 'rate': continue
            if l['kind'] == 'credits': apply_refill(M, l)
            before[(l['kind'], l['at'])] = (l, k['id'])
    run.log.append((run.now, 'c', '-- crash'))
    for x in run.S: x.conn.close()
    run.ctl.close()
    run.srv.stop('immediate')
    run.srv.set(run.now + rng.choice([0, 1000, US, 3 * US]))
    run.srv.start()
    run.connect()
    M.released = {}; run.released = 0
    for r in M.reservations.values(): r['state'] = 'lost'
    run.ctl.execute("SELECT 1 FROM apikey_verify(%s)" % q(run.pulse))
    for (kind, at), (l, kid) in before.items():
        run.compared += 1
        if kind == 'quota':
            n = M.counts.get(at, 0); lost = M.lost.get(at, 0)
            # loads it
            cur = limits_of(T, T['keys'][kid], subject_of(T, T['keys'][kid]), 0, None, True, run.now)[0]['at']
            if cur != at: continue
            run.ctl.execute("SELECT 1 FROM apikey_usage_adjust(%s, 0)" % q(kid))
            row = run.ctl.execute("SELECT current_usage, charged FROM apikeys.meter() WHERE subject_id = %s AND period = %s AND t.us(period_start) = %d" % (q(at[0]), q(at[2]), at[3])).fetchone()
            billed, charged = row
            tops = M.top.get(at, set()) | {l['amount']}
            strict = touch or len(tops) == 1
            if l['amount'] is not None and strict and charged < n:
                run.fail('crash forgot %s limit %s tops %s key %s' % (at, l['amount'], tops, kid), charged, n)
            if billed > n - lost + M.given.get(at, 0): run.fail('crash billed more %s' % (at,), billed, n - lost)
            if None not in tops:
                step = max([max(1, t // 64) for t in tops] + [run.maxcost])
                if charged > n + step + M.given.get(at, 0): run.fail('crash lost more than a step %s limit %s' % (at, tops), charged, n + step)
            M.counts[at] = charged; M.lost[at] = charged - billed
        else:
            c = M.credit(at); bal = l['amount'] - c['charged']
            row = run.ctl.execute("SELECT a.spent, a.charged FROM apikeys.credit_account(%s, %s, 0, NULL, NULL, NULL, NULL, false) a" % (q(at[0]), q(at[1]))).fetchone()
            o = T['keys'][at[0]] if at[1] == 'key' else next(u for u in T['users'].values() if u['subject'] == at[0])
            spent, charged = row
            if charged < c['charged']:
                # an unapplied refill is applied by the model
                l2 = l
                if min(charged, l['amount'] - l['refill']) < c['charged'] and charged < c['charged']: run.fail('crash gave credits back %s %s' % (at, l), charged, c['charged'])
            if spent > c['spent'] + M.given.get(at, 0): run.fail('crash billed credits %s' % (at,), spent, c['spent'])
            if charged > c['charged'] + M.given.get(at, 0) + max(1, bal // 64, run.maxcost) and not l['refill']: run.fail('crash cost credits %s %s' % (at, l), charged, c['charged'])
            c['spent'], c['charged'] = spent, charged
            # let a refill that is due be applied by the meter as by the model
            c['refilled'] = 0
    # rates are used up
    for k in T['keys'].values():
        L = limits_of(T, k, subject_of(T, k), 0, None, True, run.now)
        for l in L:
            if l['kind'] == 'rate': M.tat.pop(l['at'], None)

def run_crash(srv, seed, n):
    run = Run(srv, seed); run.maxcost = 70
    ops = []
    try:
        ops += prologue(run)
        for i in range(n):
            op = gen(run)
            if op['op'] in ('restart',): continue
            if op.get('cost', 0) > 70: op['cost'] = 70
            if op['op'] == 'time': op['us'] = min(op['us'], 3 * US) if run.rng.random() < 0.97 else op['us']
            note_limits(run)
            ops.append(op); run.do(op)
        crash(run, run.rng.random() < 0.6)
        # what is left is used up: never more than the limit
        for k in list(run.T['keys'].values()):
            sub = subject_of(run.T, k); L = limits_of(run.T, k, sub, 0, None, False, run.now)
            if L[0]['amount'] is None or L[0]['amount'] > 700 or len(L) > 1: continue
            for j in range(L[0]['amount'] + 2):
                run.op_verify(0, run.keyids.index(k['id']), 'own', 1, ' OR '.join(['read', 'NOT read']), None, '10.1.2.3', None, False, 'drain')
        return run, ops, None
    except Mismatch as e: return run, ops, e
    except Exception as e:
        traceback.print_exc()
        return run, ops, Mismatch('exception %r' % e)

def run_seed(srv, seed, n, verbose=False):
    run = Run(srv, seed)
    ops = []
    try:
        ops += prologue(run)
        for i in range(n):
            op = gen(run)
            ops.append(op)
            run.do(op)
        for i in range(run.nsess): run.do(dict(op='end', s=i, commit=True))
        ops.append(dict(op='check', s=0)); run.do(ops[-1])
        ops.append(dict(op='rollups', s=0)); run.do(ops[-1])
        return run, ops, None
    except Mismatch as e:
        return run, ops, e
    except Exception as e:
        traceback.print_exc()
        return run, ops, Mismatch('exception %r' % e)

def replay(srv, seed, ops):
    run = Run(srv, seed)
    try:
        for op in ops:
            run.do(op)
        return run, None
    except Mismatch as e:
        return run, e
    except Exception as e:
        traceback.print_exc()
        return run, None
    finally:
        try: run.close()
        except Exception: pass

def shrink(srv, seed, ops, seconds=180):
    """As few of the calls as still differ, somehow."""
    end = time.time() + seconds
    def differs(part):
        run, e = replay(srv, seed, part)
        return part[:run.ops] if e else None
    # whole sessions and kinds of calls first
    for leave in [lambda o, s=s: o.get('s') != s for s in (2, 1)] + [lambda o, k=k: o['op'] != k for k in sorted({o['op'] for o in ops})]:
        if time.time() < end: ops = differs([o for o in ops if leave(o)]) or ops
    n = len(ops) // 2
    while n >= 1 and time.time() < end:
        i = 0
        while i < len(ops) and time.time() < end:
            less = differs(ops[:i] + ops[i + n:])
            if less: ops = less
            else: i += n
        n //= 2
    return ops

def main():
    bindir, dir, library, seconds, seed = sys.argv[1:4] + [int(x) for x in sys.argv[4:6]]
    srv = Server(bindir, dir, library)
    end = time.time() + seconds
    runs = calls = compared = differ = 0
    try:
        while runs == 0 or time.time() < end:
            run, ops, e = run_crash(srv, seed, 150) if seed % 3 == 0 else run_seed(srv, seed, 1200)
            runs += 1; calls += run.ops; compared += run.compared
            if e:
                differ += 1
                print('seed %d differs after %d calls: %s' % (seed, run.ops, e), flush=True)
                try: run.close()
                except psycopg.Error: pass
                if seed % 3:
                    ops = shrink(srv, seed, ops)
                    run, e = replay(srv, seed, ops)
                    print('cut down to %d calls: %s' % (run.ops, e))
                print('\n'.join('  %s session %s: %s' % (to_dt(at), s, text.replace(VCOLS, '*').replace(UCOLS, '*')) for at, s, text in run.log[-60:]))
            else: run.close()
            seed += 1
    finally:
        srv.stop('immediate')
    figures = '%d calls in %d runs up to seed %d, %d answers and rows compared: %d runs differ' % (calls, runs, seed - 1, compared, differ)
    print(figures)
    if len(sys.argv) > 6:
        with open(sys.argv[6], 'w') as f: f.write(figures)
    return differ > 0

if __name__ == '__main__': sys.exit(main())
