"""The documented semantics of apikeys, written a second time.

What is here is the reference (doc/reference.md), not the source: a meter of
plain dictionaries, one request after the other. model_calls.py drives a server
and this at once. Times are microseconds since 2000-01-01 UTC; arrival times of
rates are nanoseconds.
"""
import pickle, ipaddress
from datetime import datetime, timedelta, timezone
US = 1000000
E = datetime(2000, 1, 1, tzinfo=timezone.utc)
def to_dt(us): return E + timedelta(microseconds=us)
def from_dt(d):
    x = d - E
    return (x.days * 86400 + x.seconds) * US + x.microseconds
FIXED = dict(minute=60*US, hour=3600*US, day=86400*US, week=7*86400*US)
MONDAY = 2 * 86400 * US

def last_day(y, m):
    n = datetime(y + m // 12, m % 12 + 1, 1)
    return (n - timedelta(days=1)).day
def add_months(d, n):
    m = d.year * 12 + d.month - 1 + n
    y, m = divmod(m, 12)
    return d.replace(year=y, month=m + 1, day=min(d.day, last_day(y, m + 1)))
def months_at(unit, anchor, now):
    a, t = to_dt(anchor), to_dt(now)
    n = ((t.year - a.year) * 12 + t.month - a.month) // unit - 2
    while add_months(a, (n + 1) * unit) <= t: n += 1
    return from_dt(add_months(a, n * unit)), from_dt(add_months(a, (n + 1) * unit))
def fixed_at(length, anchor, now):
    s = anchor + (now - anchor) // length * length
    return s, s + length
def period_at(unit, anchor, now):
    if unit in FIXED:
        return fixed_at(FIXED[unit], (MONDAY if unit == 'week' else 0) if anchor is None else anchor, now)
    return months_at(1 if unit == 'month' else 12, 0 if anchor is None else anchor, now)

def refill_at(c, now):
    """c: amount, every=(months, days, us), day, since -> (previous, next) or None"""
    if c['granted'] is None or not c['amount']: return None
    mo, d, us = c['every']
    day = c['day'] or 1
    if mo: return months_at(mo, (day - 1) * 86400 * US, now)
    if us == 0 and d % 7 == 0: a = fixed_at(7*86400*US, MONDAY + (day-1)*86400*US, c['since'])[0]
    elif us == 0: a = c['since'] // (86400*US) * 86400*US
    else: a = c['since'] // US * US
    return fixed_at(d * 86400 * US + us, a, now)

def emission(r): return -(-r['period'] * 1000 // r['amount'])
def holds(expr, held):
    def has(p):
        for h in held:
            if h == p or h == '*' or (h.endswith('.*') and p.startswith(h[:-1])): return True
        return False
    toks = expr.split()
    # a | NOT a | a AND b | a OR NOT b ...
    def term(i):
        if toks[i] == 'NOT':
            v, j = term(i + 1); return (not v), j
        return has(toks[i]), i + 1
    def conj(i):
        v, i = term(i)
        while i < len(toks) and toks[i] == 'AND':
            w, i = term(i + 1); v = v and w
        return v, i
    v, i = conj(0)
    while i < len(toks) and toks[i] == 'OR':
        w, i = conj(i + 1); v = v or w
    return v

class Err(Exception):
    def __init__(self, code): self.code = code

def copy(x): return pickle.loads(pickle.dumps(x, -1))
EMPTY_T = dict(apis={}, plans={}, users={}, keys={}, roles={})

class Meter:
    def __init__(self):
        self.counts = {}      # (subject, kind, period, start) -> n
        self.credits = {}     # (subject, kind) -> dict(spent, charged, refilled)
        self.tat = {}         # (subject, kind, name) -> dict(tat, back)
        self.requests = {}    # (key, rid) -> at
        self.reservations = {}
        self.history = []
        self.stats = {}
        self.lost = {}        # of counts, what a crash cost: charged, not billed
        self.given = {}       # what was given back: a crash may have it billed
        self.top = {}         # the highest limit a count was held to (None: unlimited)
        self.window = 86400 * US
    def credit(self, s): return self.credits.setdefault(s, dict(spent=0, charged=0, refilled=0))
    def rate(self, s): return self.tat.setdefault(s, dict(tat=0, back=0))

def ns(now): return now * 1000
def ahead(r, tat, now): return min(max(tat - ns(now), 0), r['burst'] * emission(r))

def subject_of(T, k):
    u = T['users'].get(k['user'])
    pid, is_user = k['plan'], False
    if pid is None and u is not None and u['plan'] is not None: pid, is_user = u['plan'], True
    if pid is None:
        a = T['apis'].get(k['api']); pid = a['plan'] if a else None
    plan = T['plans'].get(pid) if pid is not None else None
    return dict(user=u, plan_id=pid, plan=plan, is_user=is_user,
                subject=u['subject'] if is_user else k['id'],
                kind='user' if is_user else 'key',
                anchor=u['start'] if u else None)
def usable(s):
    return s['plan_id'] is None or (s['plan'] is not None and s['plan']['active'] and s['plan']['deleted'] is None)

def credits_limit(c, subject, kind, cost, now):
    l = dict(name='credits', kind='credits', at=(subject, kind), amount=c['granted'], refill=c['amount'] or 0,
             cost=cost, next=None, due=0)
    sp = refill_at(c, now)
    if sp:
        l['next'] = sp[1]
        if sp[0] > c['since']: l['due'] = max(sp[0] // US, 0)
    return l

def limits_of(T, k, s, cost, charges, all_, now):
    """k None: of a user"""
    ch = charges or {}
    named = set()
    def c(name, d):
        if name in ch: named.add(name); return ch[name]
        return d
    per = s['plan']['period'] if s['plan'] else 'month'
    start, end = period_at(per, s['anchor'], now)
    L = [dict(name='quota', kind='quota', at=(s['subject'], s['kind'], per, start), end=end, start=start, period=per,
              amount=s['plan']['max'] if s['plan'] else None, cost=c('quota', cost))]
    cc = c('credits', cost)
    if k is not None and k['credits']['granted'] is not None:
        L.append(credits_limit(k['credits'], k['id'], 'key', cc, now))
    elif s['user'] and s['user']['credits']['granted'] is not None:
        L.append(credits_limit(s['user']['credits'], s['user']['subject'], 'user', cc, now))
    seen = {l['name'] for l in L}
    src = []
    if k is not None: src.append((k['rates'], k['id'], 'key'))
    if s['user']: src.append((s['user']['rates'], s['user']['subject'], 'user'))
    if s['plan']: src.append((s['plan']['rates'], s['subject'], s['kind']))
    for rates, subj, kind in src:
        for name in sorted(rates):
            if name in seen: continue
            seen.add(name)
            r = rates[name]
            if not r['auto'] and name not in ch and not all_: continue
            L.append(dict(name=name, kind='rate', at=(subj, kind, name), rate=dict(r), cost=c(name, cost)))
    for n in ch:
        if n not in named and n != 'request_id': raise Err('22023')
    return L

def refuses(M, l, now):
    if l['kind'] == 'rate':
        r = l['rate']
        if l['cost'] > r['burst']: return True
        return ahead(r, M.rate(l['at'])['tat'], now) > (r['burst'] - l['cost']) * emission(r)
    if l['cost'] == 0: return False
    if l['kind'] == 'credits':
        return l['cost'] > l['amount'] - M.credit(l['at'])['charged']
    if l['amount'] is None: return False
    return l['cost'] > l['amount'] - M.counts.get(l['at'], 0)

def apply_refill(M, l):
    c = M.credit(l['at'])
    if l['due'] > c['refilled']:
        c['charged'] = min(c['charged'], l['amount'] - l['refill'])
        c['refilled'] = l['due']
def charged_of(M, l):
    c = M.credit(l['at'])
    return min(c['charged'], l['amount'] - l['refill']) if l['due'] > c['refilled'] else c['charged']
def rate_remaining(r, tat, now): return r['burst'] - -(-ahead(r, tat, now) // emission(r))

def shown(M, l, now):
    if l['kind'] == 'rate':
        a = ahead(l['rate'], M.rate(l['at'])['tat'], now)
        return dict(name=l['name'], kind='rate', limit=l['rate']['burst'], remaining=rate_remaining(l['rate'], M.rate(l['at'])['tat'], now),
                    reset_time=now + -(-a // 1000), refused=l.get('refuses', False))
    if l['kind'] == 'credits':
        return dict(name='credits', kind='credits', limit=l['refill'] or None, remaining=max(l['amount'] - charged_of(M, l), 0),
                    reset_time=l['next'], refused=l.get('refuses', False))
    n = M.counts.get(l['at'], 0)
    return dict(name='quota', kind='quota', limit=l['amount'], remaining=None if l['amount'] is None else max(l['amount'] - n, 0),
                reset_time=l['end'], refused=l.get('refuses', False))

def retry_at(M, l, now):
    if l['kind'] == 'rate':
        r = l['rate']
        if l['cost'] > r['burst']: return None
        return now + -(-max(ahead(r, M.rate(l['at'])['tat'], now) - (r['burst'] - l['cost']) * emission(r), 0) // 1000)
    if l['kind'] == 'credits':
        return None if l['cost'] > l['refill'] else l['next']
    return None if l['cost'] > l['amount'] else l['end']

def charge(M, L, cost_key, now):
    """all or none. -> outcome, repeated, holds"""
    for l in L:
        if l['kind'] == 'rate':
            x = M.rate(l['at']); fill = l['rate']['burst'] * emission(l['rate'])
            if x['tat'] - ns(now) > fill: x['tat'] = ns(now) + fill
        if l['kind'] == 'credits': apply_refill(M, l)
        l['refuses'] = refuses(M, l, now)
    if cost_key is not None:
        at = M.requests.get(cost_key)
        if at is not None and at > now - M.window:
            for l in L: l['refuses'] = False
            return 'VALID', True, None
    if any(l['refuses'] for l in L):
        return ('RATE_LIMITED' if any(l['refuses'] and l['kind'] == 'rate' for l in L) else 'USAGE_EXCEEDED'), False, None
    held = []
    for l in L:
        h = dict(kind=l['kind'], at=l['at'], cost=l['cost'], now=now)
        if l['cost']:
            if l['kind'] == 'rate':
                x = M.rate(l['at']); e = emission(l['rate'])
                x['tat'] = ns(now) + ahead(l['rate'], x['tat'], now) + l['cost'] * e
                h.update(emission=e, arrival=x['tat'] + x['back'], known=True)
            elif l['kind'] == 'credits':
                c = M.credit(l['at']); h['lost'] = c['charged'] - c['spent']
                c['charged'] += l['cost']; c['spent'] += l['cost']
            else: M.counts[l['at']] = M.counts.get(l['at'], 0) + l['cost']
        held.append(h)
    if cost_key is not None: M.requests[cost_key] = now
    return 'VALID', False, held

def settle(M, held, used, now):
    """used: how much of each cost is kept (None: nothing)"""
    for h in held:
        rest = h['cost'] - (used or 0)
        if h['kind'] == 'rate':
            if h['cost'] == 0: continue
            x = M.rate(h['at'])
            own = ns(h['now']) + h['cost'] * h['emission']
            then = h['arrival'] - x['back'] if h['known'] else 0
            back = min(rest * h['emission'], max(max(then, own) - ns(now), 0))
            x['tat'] -= back; x['back'] += back
        elif rest == 0: continue
        elif h['kind'] == 'credits':
            c = M.credit(h['at'])
            filled = min(max(h['lost'] - (c['charged'] - c['spent']), 0), rest)
            c['spent'] -= rest; c['charged'] -= rest - filled
            M.given[h['at']] = M.given.get(h['at'], 0) + abs(rest)
        else:
            M.given[h['at']] = M.given.get(h['at'], 0) + abs(rest)
            M.counts[h['at']] = M.counts.get(h['at'], 0) - min(rest, M.counts.get(h['at'], 0) - M.lost.get(h['at'], 0))

def find_key(T, secret, now):
    for k in T['keys'].values():
        if k['secret'] == secret: return k
    for k in T['keys'].values():
        if k['prev'] == secret and k['prev_until'] > now: return k
    return None

def ip_ok(k, ip):
    if k['ips'] is None: return True
    if ip is None: return False
    a = ipaddress.ip_address(ip)
    c = [a] + ([a.ipv4_mapped] if a.version == 6 and a.ipv4_mapped else [])
    return any(x.version == n.version and x in n for x in c for n in map(ipaddress.ip_network, k['ips']))

NULLS = dict.fromkeys('key_id api_id name user_id plan_id plan_name current_usage limit remaining reset_time period retry_after expires_at limits credits repeated permissions'.split())
def identity(k, s):
    return dict(key_id=k['id'], api_id=k['api'], name=k['name'], user_id=k['user'], permissions=k['perms'], expires_at=k['expires'],
                plan_id=s['plan_id'] if s['plan'] else None, plan_name=s['plan']['name'] if s['plan'] else None)
def metered(M, L, code, now, charges, has_request, repeated):
    q = L[0]; n = M.counts.get(q['at'], 0)
    a = dict(current_usage=n - M.lost.get(q['at'], 0), limit=q['amount'], remaining=None if q['amount'] is None else max(q['amount'] - n, 0),
             reset_time=q['end'], period=q['period'])
    if code != 'VALID':
        at = now
        for l in L:
            if l['refuses']:
                r = retry_at(M, l, now)
                at = None if r is None or at is None else max(at, r)
        a['retry_after'] = None if at is None else at - now
    if len(L) > 1 and L[1]['kind'] == 'credits': a['credits'] = max(L[1]['amount'] - charged_of(M, L[1]), 0)
    if has_request: a['repeated'] = repeated
    if charges is not None: a['limits'] = [shown(M, l, now) for l in L]
    return a

def verify(T, M, now, secret, cost=1, perms=None, api=None, ip=None, charges=None, endpoint=None, reserve=None):
    """-> answer, held (None if nothing can be given back), key, record"""
    a = dict(NULLS)
    def done(code, k=None, rec_cost=None):
        a['code'] = code; a['valid'] = code == 'VALID'
        M.stats[code] = M.stats.get(code, 0) + 1
        if rec_cost is not None:
            M.history.append(dict(ts=now, key=k['id'], code=code, status='allowed' if code == 'VALID' else 'denied', cost=rec_cost, endpoint=endpoint))
        return a
    if not secret or secret.startswith('!'): return done('MALFORMED'), None
    k = find_key(T, secret, now)
    if k is None: return done('NOT_FOUND'), None
    if k['deleted'] is not None and not (k['expires'] is not None and k['expires'] <= k['deleted']): return done('NOT_FOUND'), None
    if api is not None and api != k['api']: return done('NOT_FOUND'), None
    s = subject_of(T, k)
    a.update(identity(k, s))
    code = None
    if not k['enabled'] or k['fenced'] or (s['user'] and (s['user']['disabled'] or s['user']['deleted'] is not None)) or not usable(s): code = 'DISABLED'
    elif k['deleted'] is not None or (k['expires'] is not None and k['expires'] <= now): code = 'EXPIRED'
    elif not ip_ok(k, ip): code = 'FORBIDDEN'
    elif perms is not None and not holds(perms, k['perms'] + [p for r in k['roles'] for p in T['roles'].get(r, [])]): code = 'INSUFFICIENT_PERMISSIONS'
    if code: return done(code, k, cost if cost else None), None
    L = limits_of(T, k, s, cost, charges, False, now)
    rid = (charges or {}).get('request_id')
    if all(l['cost'] == 0 for l in L):
        a.update(metered(M, L, 'VALID', now, charges, rid is not None, False))
        return done('VALID'), None
    if reserve is not None and len(L) > 8: raise Err('54000')
    code, repeated, held = charge(M, L, (k['id'], rid) if rid is not None else None, now)
    a.update(metered(M, L, code, now, charges, rid is not None, repeated))
    a = done(code, k, 0 if repeated else L[0]['cost'])
    if held is None: return a, None
    return a, dict(held=held, request=(k['id'], rid) if rid is not None else None, key=k['id'])

def give_back(M, h, now):
    settle(M, h['held'], None, now)
    if h['request'] is not None: M.requests.pop(h['request'], None)

def usage_report(T, M, now, k):
    s = subject_of(T, k)
    L = limits_of(T, k, s, 0, None, True, now)
    a = metered(M, L, 'VALID', now, {}, False, False)
    return dict(key_id=k['id'], user_id=k['user'], plan_id=s['plan_id'], current_usage=a['current_usage'], limit=a['limit'],
                remaining=a['remaining'], reset_time=a['reset_time'], period=a['period'], period_start=L[0]['start'], subject=s['kind'],
                limits=a['limits'], credits=a.get('credits'))
def user_usage_report(T, M, now, uid):
    u = T['users'][uid]
    plan = T['plans'].get(u['plan'])
    s = dict(user=u, plan_id=u['plan'], plan=plan, is_user=True, subject=u['subject'], kind='user', anchor=u['start'])
    L = limits_of(T, None, s, 0, None, True, now)
    a = metered(M, L, 'VALID', now, {}, False, False)
    return dict(key_id=None, user_id=uid, plan_id=u['plan'], current_usage=a['current_usage'], limit=a['limit'],
                remaining=a['remaining'], reset_time=a['reset_time'], period=a['period'], period_start=L[0]['start'], subject='user',
                limits=a['limits'], credits=a.get('credits'))
