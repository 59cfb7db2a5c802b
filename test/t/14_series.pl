# Rollups: they equal the history, whatever dies meanwhile, they outlast it,
# and a year of them is read by the index.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'main',
	'restart_after_crash' => 'on',
	'apikeys.flush_interval' => '50ms',
	'apikeys.sweep_interval' => '1s');
$node->start;
install($node);
my $dir = PostgreSQL::Test::Utils::tempdir;

# The rows that rollups should have and have not, or have and should not.
my $wanted = q(
	SELECT key_id, step, date_trunc(step, timestamp, 'UTC') AS start, code,
	       count(*) AS requests,
	       sum(CASE status WHEN 'allowed' THEN cost ELSE 0 END)::bigint AS cost
	  FROM apikeys.requests, (VALUES ('hour'), ('day')) s (step)
	 GROUP BY 1, 2, 3, 4);
my $sums = q(
	SELECT step, start, code, sum(requests)::bigint, sum(cost)::bigint
	  FROM apikeys.rollups GROUP BY 1, 2, 3);
my $difference = qq(
	SELECT * FROM (SELECT 'missing', w.* FROM
	        ($wanted EXCEPT SELECT * FROM apikeys.rollups) w
	 UNION ALL
	 SELECT 'wrong', r.* FROM
	        (SELECT * FROM apikeys.rollups EXCEPT ($wanted)) r
	 UNION ALL
	 SELECT 'total', NULL, t.* FROM
	        (($sums EXCEPT SELECT * FROM apikeys.rollup_totals)
	         UNION ALL
	         (SELECT * FROM apikeys.rollup_totals EXCEPT $sums)) t) d LIMIT 5);
my $equal = "SELECT NOT EXISTS ($difference)";
my $journaled =
  'SELECT coalesce(sum(counts), 0) FROM apikeys.rollup_journal';

sub worker
{
	return $node->safe_psql('postgres',
		q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'apikeys worker')
	);
}

# A setting, in new sessions and in the worker's.
sub set
{
	my ($name, $value) = @_;
	$node->safe_psql('postgres', "ALTER SYSTEM SET $name = '$value'");
	$node->reload;
	return ok(
		$node->poll_query_until(
			'postgres',
			"SELECT setting = '$value' OR current_setting(name) = '$value' FROM pg_settings WHERE name = '$name'"
		),
		"$name is $value");
}

# ----- Several clients, several outcomes, and a worker that is replaced -----

$node->safe_psql('postgres',
	q(SELECT apikey_plan_create('Some', 500, 'year', plan_id => 'some')));
my @secrets;
foreach my $arguments (
	q('unlimited'), q('some', plan_id => 'some'),
	q('disabled', enabled => false),
	q('networks', allowed_ips => '{10.0.0.0/8}'))
{
	push @secrets, (issue($node, 'postgres', $arguments))[1];
}
my $script = "$dir/load";
append_to_file($script, join '', map { "SELECT code FROM apikey_verify('$_', cost => 3);\n" } @secrets)
  foreach 1 .. 500;

sub start_clients
{
	my ($round) = @_;
	return map {
		IPC::Run::start(
			[
				'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d',
				$node->connstr('postgres'), '-f', $script
			],
			'<', \undef, '>', "$dir/out.$round.$_", '2>', "$dir/err.$round.$_")
	} 1 .. 3;
}

sub told
{
	my ($round) = @_;
	my $codes = codes(map { "$dir/out.$round.$_" } 1 .. 3);
	my $sum = 0;
	$sum += $_ foreach values %$codes;
	return $sum;
}

my @runs = start_clients('worker');
ok(until_true(sub { told('worker') >= 1000 }), 'clients verify');
my $worker = worker();
is( $node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 60000)"),
	't', 'the worker is terminated under them');
is(scalar(grep { !$_->finish } @runs), 0, 'no client has failed');
isnt(worker(), $worker, 'another has come');
my $sum = told('worker');
is($sum, 6000, 'all were answered');
ok(flushed($node, 'postgres', 6000), 'all are in the history');
ok($node->poll_query_until('postgres', $equal), 'and in the rollups');
is($node->safe_psql('postgres', $difference), '', 'exactly');
is( $node->safe_psql(
		'postgres', q(
		SELECT code, sum(requests) > 0, sum(cost) > 0 FROM apikeys.rollups
		 WHERE step = 'day' GROUP BY 1 ORDER BY 1)),
	"DISABLED|t|f\nFORBIDDEN|t|f\nUSAGE_EXCEEDED|t|f\nVALID|t|t",
	'by outcome, with what was consumed');

# ----- A crash under load -----

@runs = start_clients('crash');
ok(until_true(sub { told('crash') >= 1000 }), 'clients verify');
ok($node->poll_query_until('postgres', 'SELECT count(*) > 6000 FROM apikeys.requests'),
	'and some of it is written');
$node->kill9;
eval { $_->finish } foreach @runs;
ok(start_again($node), 'the server starts again');
ok($node->poll_query_until('postgres', $equal), 'rollups equal the history');
is($node->safe_psql('postgres', $difference), '', 'after a crash');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM apikeys.requests'),
	'>', 6000, 'of which something is left');

# ----- Crashes with much that is not yet in the rollups -----

# Nothing is added for half a minute once there are that many keys.
$node->safe_psql(
	'postgres', q(
	CREATE TABLE many AS
	SELECT k.id, k.api_key AS secret FROM generate_series(1, 3000) n,
	       LATERAL apikey_create('key ' || n) k));
my $all = 'SELECT count((apikey_verify(secret)).code) FROM many';
my $idle = q(SELECT count(*) = 1 FROM pg_stat_activity
	WHERE backend_type = 'apikeys worker' AND state = 'idle');

sub kill_postmaster
{
	$node->kill9;
	return ok(start_again($node), 'the server starts again');
}

# It takes shared memory with it.
sub kill_worker
{
	my $pid = worker();
	kill 'KILL', $pid;
	return ok(
		$node->poll_query_until(
			'postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid"),
		'the server is back');
}

foreach my $kill (\&kill_postmaster, \&kill_worker)
{
	my $before =
	  $node->safe_psql('postgres', 'SELECT count(*) FROM apikeys.requests');
	set('apikeys.flush_interval', '1min');

	# A worker begins with a look at the journal, and adds what it finds.
	is(verify($node, 'postgres', $secrets[0]), 'VALID', 'a worker comes');
	ok($node->poll_query_until('postgres', $idle), 'and has had its first look');
	is($node->safe_psql('postgres', $all), '3000', 'many keys are verified');
	set('apikeys.flush_interval', '50ms');
	ok(flushed($node, 'postgres', $before + 3001), 'the history is durable');
	cmp_ok($node->safe_psql('postgres', $journaled),
		'>', 1000, 'the rollups wait');
	cmp_ok(
		$node->safe_psql('postgres',
			"SELECT value FROM apikeys.stats WHERE name = 'rollup_pending'"),
		'>', 1000, 'which the statistics tell');
	is($node->safe_psql('postgres', $equal), 'f', 'and lack them');
	$kill->();

	# Nobody verifies: the launcher's visit will do.
	ok($node->poll_query_until('postgres', $equal), 'they come after a crash');
	is($node->safe_psql('postgres', $difference), '', 'exactly');
	is($node->safe_psql('postgres', $journaled), '0', 'once');
}

# ----- Rollups that cannot be written -----

my $blocker = $node->background_psql('postgres');
$blocker->query_safe(
	'BEGIN; LOCK TABLE apikeys.rollups IN EXCLUSIVE MODE');
my $before =
  $node->safe_psql('postgres', 'SELECT count(*) FROM apikeys.requests');
is(verify($node, 'postgres', $secrets[0]), 'VALID', 'a request');
ok(flushed($node, 'postgres', $before + 1),
	'history does not wait for the rollups');
$worker = worker();
is( $node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 60000)"),
	't', 'nor does a worker that is to leave');
is( $node->safe_psql('postgres',
		'SELECT count(*) FROM apikeys.incarnations WHERE closed_at IS NULL AND superseded_at IS NULL'
	),
	'0',
	'it closes the meter');
is($node->safe_psql('postgres', $journaled), '1', 'the journal keeps them');
$blocker->query_safe('COMMIT');
$blocker->quit;
is(verify($node, 'postgres', $secrets[0]), 'VALID', 'the next worker');
ok($node->poll_query_until('postgres', $equal), 'makes up for it');

# A stop leaves nothing behind.
is($node->safe_psql('postgres', $all), '3000', 'many keys are verified');
$node->restart;
is($node->safe_psql('postgres', $journaled), '0', 'a stop empties the journal');
is($node->safe_psql('postgres', $difference), '', 'into the rollups');

# ----- History that is off, or gone -----

set('apikeys.history', 'off');
my $day = q(SELECT coalesce(sum(requests), 0) FROM apikeys.rollups WHERE step = 'day');
$before = $node->safe_psql('postgres', $day);
verify($node, 'postgres', $_) foreach @secrets;
ok($node->poll_query_until('postgres', "SELECT ($day) = $before + 4"),
	'requests are counted without history, denials too');
isnt($node->safe_psql('postgres', $equal), 't', 'of which history has none');
set('apikeys.history', 'on');

my $series = q(SELECT * FROM apikey_usage_series((SELECT id FROM apikeys.keys WHERE name = 'some')));
my $shown = $node->safe_psql('postgres', $series);
like($shown, qr/USAGE_EXCEEDED/, 'a series');
$node->safe_psql(
	'postgres', q(
	DO $$
	DECLARE
		gone regclass;
	BEGIN
		FOR gone IN SELECT inhrelid FROM pg_inherits
		             WHERE inhparent = 'apikeys.requests'::regclass
		               AND inhrelid <> 'apikeys.requests_default'::regclass LOOP
			EXECUTE 'DROP TABLE ' || gone;
		END LOOP;
		DELETE FROM apikeys.requests_default;
	END $$));
is( $node->safe_psql('postgres', 'SELECT count(*) FROM apikeys.requests'),
	'0', 'the history is dropped');
$node->kill9;
ok(start_again($node), 'a crash after that');
is(verify($node, 'postgres', $secrets[0]), 'VALID', 'a request');
ok($node->poll_query_until('postgres', "SELECT ($day) = $before + 5"),
	'counting goes on');
is($node->safe_psql('postgres', $series), $shown, 'the series is as it was');

# ----- Retention -----

my ($old) = issue($node, 'postgres', q('old'));
my $orphan = '01900000-0000-7000-8000-000000000000';
$node->safe_psql(
	'postgres', qq(
	INSERT INTO apikeys.rollups (key_id, step, start, code, requests, cost)
	SELECT k.id, s.step, date_trunc(s.step, now(), 'UTC') - n * interval '1 day', 'VALID', 1, 1
	  FROM (VALUES ('$old'::uuid), ('$orphan')) k (id),
	       (VALUES ('hour'), ('day')) s (step),
	       unnest('{0,1,4,89,91,500}'::int[]) n;
	INSERT INTO apikeys.rollup_totals
	SELECT step, now() - interval '500 days', 'VALID', 1, 1 FROM unnest('{hour, day}'::text[]) step));
my $kept = q(SELECT string_agg(step || ' ' || round(extract(epoch FROM now() - start) / 86400 - 0.5), ', ' ORDER BY step, start) FROM apikeys.rollups WHERE key_id = '%s');
ok( $node->poll_query_until(
		'postgres', q(
		SELECT count(*) = 0 FROM apikeys.rollups
		 WHERE step = 'hour' AND start < now() - interval '90 days')),
	'hours are removed after their retention');
ok( $node->poll_query_until(
		'postgres', q(
		SELECT array_agg(step) = '{day}' FROM apikeys.rollup_totals
		 WHERE start < now() - interval '400 days')),
	'those of all keys too');
is($node->safe_psql('postgres', sprintf $kept, $old),
	'day 500, day 91, day 89, day 4, day 1, day 0, hour 89, hour 4, hour 1, hour 0',
	'and nothing else');
ok( $node->poll_query_until(
		'postgres', qq(
		SELECT count(*) = 0 FROM apikeys.rollups
		 WHERE key_id = '$orphan' AND start < now() - interval '2 days')),
	'so is what belongs to no key');
is( $node->safe_psql('postgres', sprintf $kept, $orphan),
	'day 1, day 0, hour 1, hour 0', 'if it is not of today or yesterday');

# More rows of one key than go at once.
set('apikeys.rollup_retention', '0');
$node->safe_psql(
	'postgres', qq(
	INSERT INTO apikeys.rollups (key_id, step, start, code, requests, cost)
	SELECT '$old', 'hour', date_trunc('hour', now(), 'UTC') - n * interval '1 hour', c, 1, 1
	  FROM generate_series(1, 20000) n, (VALUES ('EXPIRED'), ('DISABLED')) c (c)));
my $removed = q(SELECT count(*) FROM apikeys.rollups WHERE key_id = '%s' AND step = 'hour');
my $marker = q(INSERT INTO apikeys.rollups VALUES ('%s', 'day', '2020-01-01', 'VALID', 1, 1));
$node->safe_psql('postgres', sprintf $marker, $orphan);
ok( $node->poll_query_until(
		'postgres',
		"SELECT count(*) = 0 FROM apikeys.rollups WHERE start = '2020-01-01'"),
	'the worker has come by');
is($node->safe_psql('postgres', sprintf $removed, $old),
	'40004', 'with a retention of 0 all hours are kept');
$node->safe_psql(
	'postgres', q(
	CREATE TABLE removals (began timestamptz, ended timestamptz);
	CREATE FUNCTION note_removal() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.removals VALUES (now(), clock_timestamp());
		RETURN NULL;
	END $$;
	CREATE TRIGGER note_removal AFTER DELETE ON apikeys.rollups
	FOR EACH STATEMENT EXECUTE FUNCTION note_removal();
	ALTER TABLE apikeys.rollups ENABLE ALWAYS TRIGGER note_removal));
set('apikeys.rollup_retention', '1d');
ok( $node->poll_query_until(
		'postgres', sprintf "SELECT ($removed) <= 52", $old),
	'with one of a day, a day of them');
is( $node->safe_psql(
		'postgres', q(
		DROP TRIGGER note_removal ON apikeys.rollups;
		SELECT count(*) >= 3, bool_and(pause >= 50 * took)
		  FROM (SELECT ended - began AS took, lead(began) OVER (ORDER BY began) - ended AS pause
		          FROM removals) s
		 WHERE pause IS NOT NULL)),
	't|t',
	'by steps, each of them followed by a pause much longer');
set('apikeys.rollup_retention', '0');

# ----- A year of one key, among others -----

my ($year) = issue($node, 'postgres', q('year'));
$node->safe_psql(
	'postgres', qq(
	INSERT INTO apikeys.rollups (key_id, step, start, code, requests, cost)
	SELECT k.id, 'hour', '2023-01-01 00:00+00'::timestamptz + h * interval '1 hour', c, 1, 1
	  FROM generate_series(0, 365 * 24 - 1) h,
	       (SELECT id FROM (SELECT id FROM many LIMIT 23) m UNION ALL SELECT '$year') k (id),
	       unnest(CASE WHEN k.id = '$year' THEN '{VALID,RATE_LIMITED,USAGE_EXCEEDED}' ELSE '{VALID}' END::text[]) c
	UNION ALL
	SELECT k.id, 'day', '2023-01-01 00:00+00'::timestamptz + d * interval '1 day', c, 24, 24
	  FROM generate_series(0, 364) d,
	       (SELECT id FROM (SELECT id FROM many LIMIT 23) m UNION ALL SELECT '$year') k (id),
	       unnest('{VALID,RATE_LIMITED,USAGE_EXCEEDED}'::text[]) c;
	ANALYZE apikeys.rollups));
note 'rows: ' . $node->safe_psql('postgres', 'SELECT count(*) FROM apikeys.rollups');
my $pages = $node->safe_psql('postgres',
	q(SELECT pg_relation_size('apikeys.rollups') / 8192));
foreach my $step ([ 'hour', 8760, 3 * 8760 ], [ 'day', 365, 3 * 365 ], [ 'week', 53, 3 * 365 ], [ 'month', 12, 3 * 365 ])
{
	my ($name, $buckets, $rows) = @$step;
	my $call = qq(apikey_usage_series('$year', '$name', '2023-01-01 00:00+00', '2024-01-01 00:00+00'));
	is( $node->safe_psql('postgres',
			"SELECT count(*), sum(allowed), sum(denied), min((outcomes ->> 'RATE_LIMITED')::int) > 0 FROM $call"),
		"$buckets|8760|17520|t", "a year by $name");

	# In one session, what the function itself has read.
	my $plan = $node->safe_psql(
		'postgres', qq(
		SELECT count(*) FROM $call;
		EXPLAIN (ANALYZE, BUFFERS) SELECT * FROM $call));
	my ($time) = $plan =~ /Execution Time: ([\d.]+)/;
	my $buffers = 0;
	$buffers += $_ foreach ($plan =~ /Buffers: shared ([^\n]*)/)[0] =~ /(?:hit|read)=(\d+)/g;
	note "$name: $time ms, $buffers buffers for $rows rows, of a table of $pages pages";
	cmp_ok($buffers, '<', 1.2 * $rows + 500,
		'reads hardly more than a buffer a row');
	is( $node->safe_psql(
			'postgres', qq(
			BEGIN;
			SELECT FROM $call;
			SELECT pg_stat_get_xact_numscans('apikeys.rollups'::regclass),
			       pg_stat_get_xact_numscans('apikeys.rollups_pkey'::regclass);
			COMMIT)) =~ s/^\n*//r,
		'0|1', 'by one scan of the index');
}

# ----- What comes during a round is left to the next one -----

# A round of four steps, and in the first of them comes a row that goes before
# all others in the order in which they are taken.  Between its steps, what is
# left of a key that is gone is removed.
$node->safe_psql('postgres', 'CREATE DATABASE rounds');
install($node, 'rounds');
$node->safe_psql(
	'rounds', q(
	CREATE TABLE taken (step bigint, first_key uuid);
	CREATE FUNCTION note_taken() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF NOT EXISTS (SELECT FROM public.taken) THEN
			INSERT INTO apikeys.rollup_journal
			       (start, code, first_key, key_ids, requests, costs, counts)
			VALUES (now(), 'VALID', lpad('0', 32, '0')::uuid, '{}', '{}', '{}', 1);
		END IF;
		INSERT INTO public.taken VALUES (txid_current(), OLD.first_key);
		RETURN NULL;
	END $$;
	INSERT INTO apikeys.rollup_journal
	       (start, code, first_key, key_ids, requests, costs, counts)
	SELECT now(), 'VALID', lpad(n::text, 32, '0')::uuid, '{}', '{}', '{}', 6000
	  FROM generate_series(1, 8) n;
	CREATE TRIGGER note_taken AFTER DELETE ON apikeys.rollup_journal
	FOR EACH ROW EXECUTE FUNCTION note_taken();
	ALTER TABLE apikeys.rollup_journal ENABLE ALWAYS TRIGGER note_taken;
	CREATE TABLE tidied AS SELECT count(*) FROM apikeys.rollup_journal WITH NO DATA;
	CREATE FUNCTION note_tidied() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.tidied SELECT count(*) FROM apikeys.rollup_journal;
		RETURN NULL;
	END $$;
	INSERT INTO apikeys.rollups (key_id, step, start, code, requests, cost)
	VALUES (gen_random_uuid(), 'hour', now() - interval '3 days', 'VALID', 1, 1);
	CREATE TRIGGER note_tidied AFTER DELETE ON apikeys.rollups
	FOR EACH ROW EXECUTE FUNCTION note_tidied();
	ALTER TABLE apikeys.rollups ENABLE ALWAYS TRIGGER note_tidied));
my (undef, $late) = issue($node, 'rounds', q('late'));
is(verify($node, 'rounds', $late), 'VALID', 'a worker comes');
my $late_step = q((SELECT step FROM taken WHERE first_key = lpad('0', 32, '0')::uuid));
ok($node->poll_query_until('rounds', "SELECT count(*) = 1 FROM $late_step l"),
	'what comes during a round is taken');
is( $node->safe_psql(
		'rounds', qq(
		SELECT count(*), count(DISTINCT step) >= 2, bool_and(step < $late_step) FROM taken
		 WHERE first_key BETWEEN lpad('1', 32, '0')::uuid AND lpad('8', 32, '0')::uuid)),
	'8|t|t',
	'after all that was there when it began');
cmp_ok($node->safe_psql('rounds', 'SELECT count FROM tidied'), '>', 1,
	'what is left of a key that is gone does not wait for its end');

# A row whose arrays do not agree is added to nothing, nor is what comes with it.
my $log = -s $node->logfile;
$node->safe_psql(
	'rounds', q(
	DROP TRIGGER note_taken ON apikeys.rollup_journal;
	INSERT INTO apikeys.rollup_journal
	       (start, code, first_key, key_ids, requests, costs, counts)
	SELECT date_trunc('hour', now(), 'UTC'), 'VALID', key_ids[1], key_ids, requests, '{1}', 1
	  FROM (SELECT ARRAY[lpad('1', 32, '0')::uuid], '{1}'::int[]
	        UNION ALL
	        SELECT ARRAY[lpad('2', 32, '0')::uuid], '{1,2}') r (key_ids, requests)));
verify($node, 'rounds', $late);
$node->wait_for_log(
	qr/a row of apikeys\.rollup_journal has arrays that do not agree/, $log);
my $whole = q(lpad('1', 32, '0')::uuid);
my $damaged = q(lpad('2', 32, '0')::uuid);
is( $node->safe_psql(
		'rounds', qq(
		SELECT count(*), (SELECT count(*) FROM apikeys.rollups WHERE key_id IN ($whole, $damaged))
		  FROM apikeys.rollup_journal WHERE first_key IN ($whole, $damaged))),
	'2|0',
	'a damaged row stops all');
$node->safe_psql('rounds',
	"DELETE FROM apikeys.rollup_journal WHERE first_key = $damaged");
$node->restart;
is( $node->safe_psql('rounds',
		"SELECT step, requests, cost FROM apikeys.rollups WHERE key_id = $whole ORDER BY 1"),
	"day|1|1\nhour|1|1",
	'the others are added when it is gone');

$node->stop;
done_testing();
