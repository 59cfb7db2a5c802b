# What a key takes of the meter: its quota and one rate an entry, any other rate
# one more. When a period ends its entry goes, and the rate stays as it is.

use strict;
use warnings FATAL => 'all';
use feature 'state';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use ClockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

plan skip_all => 'the clock of clock.c is for Linux' if $^O ne 'linux';

my $node = new_server(
	'main',
	'apikeys.max_tracked_keys' => 1000,
	'apikeys.flush_interval' => '50ms');
my $day = 24 * 60 * 60;

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('postgres', $query);
}

my $tracked = q(SELECT value FROM apikeys.stats WHERE name = 'tracked_keys');

# How many more entries there are after a statement than before.
sub entries_of
{
	my ($query) = @_;
	my $before = sql($tracked);

	sql($query);
	return sql($tracked) - $before;
}

# All that was counted is in the tables: any count can go.
sub is_clean
{
	return $node->poll_query_until('postgres',
		q(SELECT sum(value) = 0 FROM apikeys.stats WHERE name IN ('counts_pending', 'counts_lag_ms')));
}

sub left_of
{
	my ($id, $name) = @_;
	return sql(qq(SELECT l ->> 'remaining' FROM apikey_usage('$id'), jsonb_array_elements(limits) l
	               WHERE l ->> 'name' = '$name'));
}

build_clock();
ok(start_with_clock($node), 'a server with a clock of its own starts');
install($node);

# A user's days begin an hour ago, so that none begins while the test runs. What
# is used of its slow rates comes back in years.
sql(q(
	SELECT apikey_plan_create('One', 1000000, 'day', plan_id => 'one');
	SELECT apikey_limit_set('slow', 100, '36500 days', plan_id => 'one');
	SELECT apikey_plan_create('Three', 1000000, 'day', plan_id => 'three');
	SELECT apikey_limit_set(n, 100, '36500 days', plan_id => 'three') FROM unnest('{a,b,c}'::text[]) n;
	SELECT apikey_plan_create('Healing', 1000000, 'day', plan_id => 'healing');
	SELECT apikey_limit_set('healing', 100, '10 days', plan_id => 'healing');
	SELECT apikey_plan_create('Fast', 1000000, 'day', plan_id => 'fast');
	SELECT apikey_limit_set('fast', 100, '10 s', plan_id => 'fast');
	SELECT apikey_plan_create('Evicted', 1000000, 'day', plan_id => 'evicted');
	SELECT apikey_limit_set('evicted', 100, '10 s', plan_id => 'evicted');
	SELECT apikey_plan_create('Brief', 1000000, 'day', plan_id => 'brief');
	SELECT apikey_limit_set('brief', 100, '100 ms', plan_id => 'brief');
	SELECT apikey_plan_create('Pair', 1000000, 'day', plan_id => p) FROM unnest('{pair,changed}'::text[]) p;
	SELECT apikey_limit_set(n, 100, '100 ms', plan_id => p)
	  FROM unnest('{first,second}'::text[]) n, unnest('{pair,changed}'::text[]) p;
	SELECT apikey_user_create(u, plan_id => p, custom_start => now() - interval '1 hour')
	  FROM (VALUES ('u1', 'one'), ('u2', 'one'), ('u3', 'three'), ('u4', 'one'), ('u5', 'one'),
	               ('u6', 'healing'), ('u7', 'fast'), ('u8', 'pair'), ('u9', 'changed')) v (u, p)));
my ($id, $secret) = issue($node, 'postgres', q('key', 'u1'));
my ($idle_id, $idle) = issue($node, 'postgres', q('idle', 'u2'));
my ($three_id, $three) = issue($node, 'postgres', q('three', 'u3'));
my ($own_id, $own) = issue($node, 'postgres', q('own', 'u4'));
my ($open_id, $open) = issue($node, 'postgres', q('open', 'u5'));
my ($healing_id, $healing) = issue($node, 'postgres', q('healing', 'u6'));
my ($fast_id, $fast) = issue($node, 'postgres', q('fast', 'u7'));
my ($pair_id, $pair) = issue($node, 'postgres', q('pair', 'u8'));
my (undef, $changed) = issue($node, 'postgres', q('changed', 'u9'));
my ($plain_id, $plain) = issue($node, 'postgres', q('plain'));
sql("SELECT apikey_limit_set('mine', 100, '36500 days', key_id => '$own_id')");
sub use_of { my ($of, $cost) = @_; return "SELECT FROM apikey_verify('$of', cost => $cost)" }

# ----- Entries -----

is(entries_of(use_of($secret, 30)), 1, 'a quota and a rate are one entry');
is(entries_of(use_of($idle, 30)), 1, 'and another key\'s');
is(entries_of(use_of($three, 30)), 3, 'a quota and three rates are three');
is(entries_of(use_of($own, 30)), 2, 'a key\'s rate is not with its user\'s quota');
is( join(' ', left_of($id, 'slow'), map({ left_of($three_id, $_) } qw(a b c)),
		left_of($own_id, 'slow'), left_of($own_id, 'mine')),
	'70 70 70 70 70 70',
	'each rate is charged');

# ----- A day later -----

# A charge of today that may yet be given back.
my $session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe("SELECT code FROM apikey_verify('$open', cost => 40, on_abort => 'refund')");
is(left_of($open_id, 'slow'), 60, 'a charge that can be given back');
my $reservation = sql("SELECT reservation_id FROM apikey_reserve('$secret', 20, '3 days')");
is(left_of($id, 'slow'), 50, 'and one that is reserved');
sql(use_of($healing, 75));
my $behind = sql("SELECT reservation_id FROM apikey_reserve('$healing', 5, '3 days')");
sql(use_of($fast, 1));
ok(is_clean(), 'all is written');

set_clock($day);
is(entries_of(use_of($secret, 1)), 0, 'the next day\'s count stands in for the last one\'s');
is(left_of($id, 'slow'), 49, 'with the rate as it was');
is(left_of($id, 'quota'), 1000000 - 1, 'and a quota of its own');
is(entries_of(use_of($three, 1)), 0, 'the same with more rates');
is(join(' ', map { left_of($three_id, $_) } qw(a b c)), '69 69 69', 'all of them');

is(entries_of(use_of($open, 1)), 1, 'what can be given back stays');
is(left_of($open_id, 'slow'), 59, 'and its rate goes on there');
$session->query_safe('ROLLBACK');
is(left_of($open_id, 'slow'), 99, 'until it is given back');
$session->quit;
is( sql(qq(SELECT current_usage FROM apikeys.usage WHERE subject_id = (SELECT subject_id FROM apikeys.users WHERE id = 'u5')
	        ORDER BY period_start LIMIT 1)) // '', '0', 'to the day that it was charged to')
  if ok(is_clean(), 'all is written');

is(sql("SELECT code FROM apikey_settle('$reservation', 5)"), 'VALID', 'what was reserved is settled');
is(left_of($id, 'slow'), 64, 'and the rest is the rate\'s again');

# It had filled by what was reserved, but not by all before.
sql(use_of($healing, 1));
is(left_of($healing_id, 'healing'), 29, 'a rate fills over the end of a period');
is(sql("SELECT code FROM apikey_settle('$behind', 0)"), 'VALID', 'what was reserved before it is settled');
is(left_of($healing_id, 'healing'), 34, 'and is given back as if none had ended');

sql(q(SELECT apikey_limit_delete('fast', plan_id => 'fast')));
sql(use_of($fast, 1));

# Two rates, of which one is no more, and two that can be given back.
is(entries_of(use_of($changed, 1)), 2, 'two rates');
sql(q(SELECT apikey_limit_delete('first', plan_id => 'changed')));
$session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe("SELECT code FROM apikey_verify('$pair', cost => 40, on_abort => 'refund')");

# ----- A day later still: of three days' counts one is left -----

ok(is_clean(), 'all is written');
set_clock(2 * $day);
is(entries_of(use_of($open, 1)), -1, 'what was given back can go');
is(left_of($open_id, 'slow'), 98, 'and its rate comes along');

# One that was not used in the period that ended does not: it makes room.
sql(use_of($fast, 1));
sql(q(SELECT apikey_limit_set('new', 100, '10 s', plan_id => 'fast')));
is(entries_of(use_of($fast, 1)), 0, 'a rate that is no more has left its place to another');

is( sql(q(SELECT count(*) FROM apikeys.usage WHERE refilled_at IS NOT NULL)),
	'0', 'what tells the lives of a rate apart is none of the count\'s');

is(entries_of(use_of($changed, 1)), -1, 'a quota joins its second rate, and the first one goes');
is(entries_of(use_of($pair, 1)), 0, 'a quota joins a rate that can be given back');
$session->query_safe('ROLLBACK');
$session->quit;
is(usage($node, 'postgres', $pair_id), 1, 'which it is');

# ----- A rate that is not full keeps its entry; others are evicted -----

# Fills the meter with others, twice: a count that can go then goes.
sub evict
{
	state $n = 0;
	$n++;

	ok(is_clean(), 'all is written');
	sql(qq(SELECT count((apikey_verify(k.api_key)).valid)
	         FROM generate_series(1, 2000) n, apikey_create('other $n ' || n) k));
	return;
}

my ($both_id, $both) = issue($node, 'postgres', q('both', plan_id => 'evicted'));
my ($large, $small) = map { sql("SELECT reservation_id FROM apikey_reserve('$both', $_)") } 80, 10;
sql("SELECT FROM apikey_settle('$large', 0)");
ok( until_true(sub { left_of($both_id, 'evicted') == 100 }),
	'a rate fills after what was given back');
my $used = left_of($open_id, 'slow');
$session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe("SELECT code FROM apikey_verify('$plain', cost => 40, on_abort => 'refund')");
evict();
is(sql("SELECT count(*) FROM apikeys.meter() WHERE subject_id = '$both_id'"), 0, 'a count is evicted');
is( sql(q(SELECT count(*) FROM apikeys.meter() m JOIN apikeys.users u USING (subject_id) WHERE u.id = 'u8')),
	0, 'and what could be given back');
is(left_of($open_id, 'slow'), $used, 'what is used of a rate is not forgotten');
is(entries_of(use_of($open, 1)), 0, 'nor is its count');
$session->query_safe('ROLLBACK');
$session->quit;
is(usage($node, 'postgres', $plain_id), 0, 'nor one that can be given back');

# What was given back before is not given back once more.
is(sql("SELECT code FROM apikey_verify('$both', cost => 40)"), 'VALID', 'a rate that was evicted is used');
my $left = qq(SELECT (l ->> 'remaining')::int FROM apikey_usage('$both_id'), jsonb_array_elements(limits) l
               WHERE l ->> 'name' = 'evicted');
my $began = time;
my ($with, $without) = split /\n+/, sql("$left; SELECT FROM apikey_settle('$small', 0); $left");
cmp_ok($without - $with, '<=', 10 * (time - $began) + 1, 'what was held before that is none of it');

# ----- A count that is not durable stays, and its rate moves -----

sql(q(ALTER SYSTEM SET apikeys.flush_interval = '60s'));
sql('SELECT pg_reload_conf()');
sql(use_of($idle, 1));
my $moved = left_of($idle_id, 'slow');
set_clock(3 * $day);
sql(use_of($idle, 1));
is(left_of($idle_id, 'slow'), $moved - 1, 'a rate moves while its count is not written');

# ----- The clock goes back: rates that were used in the future can go -----

sql(q(ALTER SYSTEM RESET apikeys.flush_interval));
sql('SELECT pg_reload_conf()');
sql(q(SELECT count((apikey_verify(k.api_key)).valid)
        FROM generate_series(1, 800) n, apikey_create('future ' || n, plan_id => 'brief') k));
my $future = q(SELECT count(*) FROM apikeys.meter() m JOIN apikeys.keys k ON k.id = m.subject_id
	            WHERE k.name LIKE 'future %');
is(sql($future), 800, 'many rates');
set_clock(2 * $day);
ok(until_true(sub { evict(); return sql($future) == 0 }), 'make room for others');

# ----- A restart, and a crash -----

my @rates = ([ $id, 'slow' ], [ $idle_id, 'slow' ], [ $three_id, 'b' ], [ $own_id, 'mine' ]);
my $before = join ' ', map { left_of(@$_) } @rates;
$node->stop;
ok(start_with_clock($node), 'a restart');
is(join(' ', map { left_of(@$_) } @rates), $before, 'keeps all rates');
is(verify($node, 'postgres', $plain), 'VALID', 'the meter is open');
is(entries_of(join ';', map { use_of($_, 1) } $secret, $idle, $three), 0, 'a quota joins the rate that it finds');
sql(use_of($own, 1));
is( join(' ', map { left_of(@$_) } @rates),
	join(' ', map { $_ - 1 } split / /, $before),
	'which go on from there');
$node->stop('immediate');
ok(start_with_clock($node), 'a crash');
is(join(' ', map { left_of(@$_) } @rates), '0 0 0 0', 'leaves nothing of them');
$node->stop;

# ----- A meter that is full to the brim of rates that are not -----

my $full = new_server(
	'full',
	'apikeys.max_tracked_keys' => 1000,
	'apikeys.flush_interval' => '50ms');
set_clock(0);
ok(start_with_clock($full), 'another server starts');
install($full);
$node = $full;
sql(q(
	SELECT apikey_plan_create('One', 1000000, 'day', plan_id => 'one');
	SELECT apikey_limit_set('slow', 100, '36500 days', plan_id => 'one');
	SELECT apikey_plan_create('Fast', 1000000, 'day', plan_id => 'fast');
	SELECT apikey_limit_set(n, 100, '1 s', plan_id => 'fast') FROM unnest('{a,b}'::text[]) n;
	CREATE TABLE secrets AS
	SELECT n, api_key FROM generate_series(1, 1000) n, apikey_create('key ' || n, plan_id => 'one')));
my (undef, $two) = issue($node, 'postgres', q('two', plan_id => 'fast'));
my $use_all = 'SELECT count(*) FROM secrets, apikey_verify(api_key) v WHERE v.valid AND n <=';

sub is_refused
{
	my ($of, $name) = @_;

	sql(q(ALTER SYSTEM SET apikeys.meter_timeout = '1s'));
	sql('SELECT pg_reload_conf()');
	$node->poll_query_until('postgres', 'SHOW apikeys.meter_timeout', '1s');
	my (undef, undef, $refusal) = $node->psql('postgres', use_of($of, 1));

	sql('ALTER SYSTEM RESET apikeys.meter_timeout');
	sql('SELECT pg_reload_conf()');
	$node->poll_query_until('postgres', 'SHOW apikeys.meter_timeout', '30s');
	return like($refusal, qr/could not admit the request within/, $name);
}

is(sql("$use_all 999"), 999, 'all places but one are taken');
ok(is_clean(), 'and all is written');
is_refused($two, 'what needs two waits in vain for another');
is(sql("$use_all 1000"), 1000, 'the last one is taken');
is(sql($tracked), 1000, 'and none is left');
is_refused($two, 'for anybody else');

ok(is_clean(), 'all is written');
set_clock($day);
is(sql("$use_all 1000"), 1000, 'the next day all find room');
ok(is_clean(), 'all is written');
$node->stop;
ok(start_with_clock($node), 'a restart');
is(sql("$use_all 1000"), 1000, 'after it too');
is(sql($tracked), 1000, 'as before');
$node->stop;

# ----- A look for what can be evicted passes over what cannot -----

$node = new_server(
	'crowd',
	'apikeys.max_tracked_keys' => 20000,
	'apikeys.flush_interval' => '50ms');
$node->start;
install($node);
sql(q(
	SELECT apikey_plan_create('One', 1000000, 'day', plan_id => 'one');
	SELECT apikey_limit_set('slow', 100, '36500 days', plan_id => 'one');
	CREATE TABLE secrets AS
	SELECT n, api_key FROM generate_series(1, 20000) n,
	       apikey_create('key ' || n, plan_id => CASE WHEN n <= 15000 THEN 'one' END)));
is(sql("$use_all 20000"), 20000, 'all places are taken');
ok(is_clean(), 'all is written');
is( sql(q(
		SELECT count(*) FILTER (WHERE (apikey_verify(k.api_key)).valid)
		  FROM generate_series(1, 100) n, apikey_create('more ' || n) k)),
	100, 'but others find room');

# ----- Who finds no room has what is idle written at once -----

# Ten intervals are longer than a verification waits.
sql(q(ALTER SYSTEM SET apikeys.flush_interval = '3s'));
sql(q(ALTER SYSTEM SET apikeys.meter_timeout = '20s'));
sql('SELECT pg_reload_conf()');
$node->poll_query_until('postgres', 'SHOW apikeys.flush_interval', '3s');
my $use_idle = "$use_all 20000 AND n > 15000";
is(sql($use_idle), 5000, 'all that could go is used');
ok(is_clean(), 'and written');
is(sql($use_idle), 5000, 'and used again, which is not written for ten intervals');
is(sql("SELECT (apikey_verify(k.api_key)).code FROM apikey_create('one more') k"),
	'VALID', 'but when somebody needs the room');

done_testing();
