# Flushes, one after the other: what apikeys.usage comes to, and how far behind
# it is, while keys are hot and administrators change them. Once plain, once
# with an old snapshot held throughout, which keeps every version of a row.
#
# APIKEYS_FLUSHES is how many flush intervals each takes: 3600 in the long form.
# The figures go to APIKEYS_FIGURES, if it is set.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use IPC::Run;
use List::Util qw(max min);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $flushes = $ENV{APIKEYS_FLUSHES} // 40;
my $interval = 100;    # ms
my $seconds = max(2, int($flushes * $interval / 1000));
$flushes = $seconds * 1000 / $interval;

# A busy count's row is written once in so many intervals if nobody asks.
my $refresh = 10;

my $dir = PostgreSQL::Test::Utils::tempdir;
my %script = (

	# A few keys get most of the requests.
	verify => q(
\set n random_zipfian(1, :keys, 1.05)
\set cost random(1, 3)
SELECT v.code FROM load.keys k, LATERAL apikey_verify(k.secret, '/v1/things', 'GET', cost => :cost) v WHERE k.n = :n;
),

	# Ten keys of a group, equally often, at a cost.
	even => q(
\set n random(:first, :first + 9)
SELECT v.code FROM load.keys k, LATERAL apikey_verify(k.secret, cost => :cost) v WHERE k.n = :n;
),
	update => q(
\set n random(2, :keys)
SELECT FROM load.keys k, LATERAL apikey_update(k.id, '{"name": "renamed", "metadata": {"updated": true}}') WHERE k.n = :n;
),
	direct => q(
\set n random(2, :keys)
UPDATE apikeys.keys SET metadata = metadata || '{"direct": true}', permissions = '{read}'
 WHERE id = (SELECT k.id FROM load.keys k WHERE k.n = :n);
),
	switch => q(
\set n random(2, :keys)
BEGIN;
UPDATE apikeys.keys SET enabled = false WHERE id = (SELECT k.id FROM load.keys k WHERE k.n = :n);
UPDATE apikeys.keys SET enabled = true WHERE id = (SELECT k.id FROM load.keys k WHERE k.n = :n);
END;
),
	regenerate => q(
\set n random(2, :keys)
UPDATE load.keys k SET secret = r.api_key
  FROM (SELECT k.n, r.api_key FROM load.keys k, LATERAL apikey_regenerate(k.id, '1 minute') r WHERE k.n = :n) r
 WHERE k.n = r.n;
),
	restore => q(
\set n random(2, :keys)
BEGIN;
SELECT FROM load.keys k, LATERAL apikey_delete(k.id) WHERE k.n = :n;
SELECT FROM load.keys k, LATERAL apikey_restore(k.id) WHERE k.n = :n;
END;
),
	plan => q(
\set more random(0, 640)
SELECT FROM apikey_plan_update('middle', json_build_object('max_requests', 6400 + :more)::jsonb);
),
	rate => q(
\set more random(0, 1000)
SELECT FROM apikey_limit_set('burst', 5000 + :more, '1 second', plan_id => 'wide');
),
	user => q(
\set n random(1, 5)
SELECT FROM apikey_user_update('user' || (:n)::int, '{"name": "renamed", "metadata": {}}');
),
	credits => q(
\set n random(2, :keys)
SELECT apikey_credits(k.id, 'add', 10) FROM load.keys k WHERE k.n = :n AND k.kind = 'credits';
),
	adjust => q(
\set n random(2, :keys)
SELECT FROM load.keys k, LATERAL apikey_usage_adjust(k.id, 1, 'because') WHERE k.n = :n AND k.kind = 'middle';
),
	reserve => q(
\set n random(2, :keys)
SELECT s.code FROM load.keys k, LATERAL apikey_reserve(k.secret, 5) r, LATERAL apikey_settle(r.reservation_id, 3) s
 WHERE k.n = :n AND k.kind = 'wide' AND r.reservation_id IS NOT NULL;
),
	create => q(
SELECT FROM apikey_create('made', plan_id => 'wide');
));
append_to_file("$dir/$_.sql", $script{$_}) foreach keys %script;

# Key n is of the kind n % 8; the last twenty are for "even".
my $setup = q(
CREATE SCHEMA load;
SELECT apikey_plan_create('Small', 20, 'minute', plan_id => 'small');
SELECT apikey_plan_create('Middle', 6400, 'year', plan_id => 'middle');
SELECT apikey_plan_create('Wide', 640000, 'year', plan_id => 'wide');
SELECT apikey_plan_create('Vast', 640000000, 'year', plan_id => 'vast');
SELECT apikey_plan_create('Shared', 6400000, 'day', plan_id => 'shared');
SELECT apikey_limit_set('burst', 5000, '1 second', plan_id => 'wide');
SELECT apikey_user_create('user' || n, plan_id => 'shared') FROM generate_series(1, 5) n;
CREATE TABLE load.keys (n int PRIMARY KEY, kind text, id uuid, secret text) WITH (fillfactor = 50);
INSERT INTO load.keys
SELECT n, kind, k.id, k.api_key
  FROM generate_series(1, 220) n,
       LATERAL (SELECT CASE WHEN n > 200 THEN 'vast' ELSE
           ('{wide,middle,unlimited,small,credits,user,wide,unlimited}'::text[])[n % 8 + 1] END AS kind) c,
       LATERAL apikey_create('key ' || n,
           user_id => CASE kind WHEN 'user' THEN 'user' || n % 5 + 1 END,
           plan_id => CASE WHEN kind NOT IN ('unlimited', 'credits', 'user') THEN kind END,
           credits => CASE kind WHEN 'credits' THEN 10000000 END) k;
CREATE UNLOGGED TABLE load.moments (ms float);
CREATE UNLOGGED TABLE load.samples (at timestamptz, lag int, counts_lag int, history_lag int, heap bigint, index bigint, dead bigint);
CREATE VIEW load.rows AS
SELECT u.*, GREATEST(1, CASE k.kind WHEN 'small' THEN 0 WHEN 'middle' THEN 6400 / 64 WHEN 'wide' THEN 640000 / 64
           WHEN 'vast' THEN 640000000 / 64 WHEN 'credits' THEN (10000000 - u.charged) / 64
           WHEN 'unlimited' THEN 9223372036854775807 ELSE 6400000 / 64 END) AS step
  FROM apikeys.usage u LEFT JOIN load.keys k ON k.id = u.subject_id;
);

# Takes a sample an interval, each in a transaction of its own.
my $sampler = qq(
DO \$\$
DECLARE
    until timestamptz := clock_timestamp() + interval '$seconds s';
BEGIN
    WHILE clock_timestamp() < until LOOP
        INSERT INTO load.samples
        SELECT clock_timestamp(), max(value) FILTER (WHERE name = 'flush_lag_ms'),
               max(value) FILTER (WHERE name = 'counts_lag_ms'),
               max(value) FILTER (WHERE name = 'history_lag_ms'),
               pg_relation_size('apikeys.usage'), pg_indexes_size('apikeys.usage'),
               pg_stat_get_dead_tuples('apikeys.usage'::regclass)
          FROM apikeys.statistics();
        COMMIT;
        PERFORM pg_sleep($interval / 1000.0);
        COMMIT;
    END LOOP;
END
\$\$;
);

# How long the machine itself holds up what sleeps and works for a moment: on
# one that does other things as well, that is no lag of the worker's.
my $idler = qq(
DO \$\$
DECLARE
    until timestamptz := clock_timestamp() + interval '$seconds s';
    begun timestamptz;
BEGIN
    WHILE clock_timestamp() < until LOOP
        begun := clock_timestamp();
        PERFORM pg_sleep(0.02);
        PERFORM count(*) FROM generate_series(1, 20000);
        INSERT INTO load.moments VALUES (extract(epoch FROM clock_timestamp() - begun) * 1000);
        COMMIT;
    END LOOP;
END
\$\$;
);

# Locks the hottest keys' rows, one after the other.
my $locker = qq(
DO \$\$
DECLARE
    until timestamptz := clock_timestamp() + interval '$seconds s';
    i int := 0;
BEGIN
    WHILE clock_timestamp() < until LOOP
        PERFORM FROM apikeys.keys WHERE id = (SELECT k.id FROM load.keys k WHERE k.n = 2 + i % 20) FOR UPDATE;
        PERFORM pg_sleep(5 * $interval / 1000.0);
        COMMIT;
        i := i + 1;
    END LOOP;
END
\$\$;
);

sub figure
{
	my ($node, $query) = @_;
	return split /\|/, $node->safe_psql('postgres', $query), -1;
}

sub stat_of
{
	my ($node, $name) = @_;
	return (figure($node,
		"SELECT value FROM apikeys.stats WHERE name = '$name'"))[0];
}

sub start
{
	my ($node, $name, @command) = @_;
	return {
		name => $name,
		run => IPC::Run::start(
			[@command], '<', \undef, '>', "$dir/$name.out", '2>', "$dir/$name.err")
	};
}

# So many transactions a second of some scripts.
sub start_load
{
	my ($node, $name, $clients, $rate, $time, $variables, @scripts) = @_;
	return start($node, $name,
		'pgbench', '-n', '-M', 'prepared', '-c', $clients, '-R', $rate, '-T', $time,
		(map { ('-D', "$_=$variables->{$_}") } sort keys %$variables),
		(map { ('-f', "$dir/$_.sql") } @scripts),
		$node->connstr('postgres'));
}

sub start_sql
{
	my ($node, $name, $sql) = @_;
	return start($node, $name, 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1',
		'-d', $node->connstr('postgres'), '-c', $sql);
}

sub finish
{
	foreach (@_)
	{
		ok($_->{run}->finish, "$_->{name} came to its end")
		  or diag(slurp_file("$dir/$_->{name}.err"));
	}
	return;
}

# The worker has written all and left; its statistics are there once its process
# has ended.
sub is_settled
{
	my ($node) = @_;
	return $node->poll_query_until('postgres',
		q(
		SELECT worker_pid IS NULL AND NOT meter_open
		       AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'apikeys worker')
		  FROM apikeys.health))
	  || die 'the worker does not leave';
}

# How many versions of rows were written, and how many at the same place.
sub versions
{
	my ($node) = @_;
	return figure(
		$node, q(
		SELECT n_tup_ins + n_tup_upd, n_tup_upd, n_tup_hot_upd
		  FROM pg_stat_user_tables WHERE relid = 'apikeys.usage'::regclass));
}

# What the same rows take in a table that was just made.
sub fresh_size
{
	my ($node) = @_;
	return figure(
		$node, q(
		BEGIN;
		CREATE TABLE load.fresh (LIKE apikeys.usage INCLUDING INDEXES);
		DO $$
		BEGIN
			EXECUTE (SELECT format('ALTER TABLE load.fresh SET (%s)', array_to_string(reloptions, ', '))
			           FROM pg_class WHERE oid = 'apikeys.usage'::regclass AND reloptions IS NOT NULL);
		END
		$$;
		INSERT INTO load.fresh SELECT * FROM apikeys.usage;
		SELECT pg_relation_size('load.fresh'), pg_indexes_size('load.fresh');
		ROLLBACK));
}

# Ten keys, each so often an interval, at a cost; how many rows are written.
sub even_load
{
	my ($node, $name, $first, $per_interval, $cost, $time) = @_;
	my $before = stat_of($node, 'usage_rows_written');
	my $valid = stat_of($node, 'VALID');
	finish(
		start_load(
			$node, $name, 4, 10 * $per_interval * 1000 / $interval, $time,
			{ first => $first, cost => $cost }, 'even'));
	return (stat_of($node, 'usage_rows_written') - $before,
		stat_of($node, 'VALID') - $valid);
}

my @report;

sub series
{
	my ($name, $is_held) = @_;
	my $node = new_server(
		$name,
		'apikeys.flush_interval' => "${interval}ms",
		'apikeys.worker_idle_timeout' => '2s',
		'track_commit_timestamp' => 'on',
		'max_connections' => '40');
	$node->start;
	install($node);
	$node->safe_psql('postgres', $setup);

	# The worker starts and makes the history's partitions.
	$node->safe_psql('postgres',
		'SELECT v.code FROM load.keys k, LATERAL apikey_verify(k.secret) v WHERE k.n = 201');
	ok( $node->poll_query_until(
			'postgres', q(
			SELECT meter_open AND flush_lag = '0' AND (
			       SELECT count(*) > 3 FROM pg_inherits WHERE inhparent = 'apikeys.requests'::regclass)
			  FROM apikeys.health)),
		"the worker is there ($name)");
	my ($begun) = figure($node, 'SELECT clock_timestamp()');

	my $holder;
	if ($is_held)
	{
		$holder = start($node, "$name-hold", 'psql', '-XAtq', '-d',
			$node->connstr('postgres') . ' application_name=holder',
			'-c', 'BEGIN ISOLATION LEVEL REPEATABLE READ',
			'-c', 'SELECT FROM apikeys.keys WHERE id = (SELECT id FROM load.keys WHERE n = 1) FOR UPDATE',
			'-c', 'SELECT count(*), pg_sleep(1000000) FROM apikeys.usage');
		ok( $node->poll_query_until(
				'postgres', q(
				SELECT count(*) = 1 FROM pg_stat_activity
				 WHERE application_name = 'holder' AND backend_xmin IS NOT NULL AND wait_event = 'PgSleep')),
			'an old snapshot is held');
	}

	my @runs = (
		start_load($node, "$name-verify", 4, 1500, $seconds, { keys => 200 }, 'verify'),
		start_load(
			$node, "$name-manage", 3, 40, $seconds, { keys => 200 },
			grep { !/^(verify|even)$/ } sort keys %script),
		start_sql($node, "$name-sample", $sampler),
		start_sql($node, "$name-idle", $idler));
	push @runs, start_sql($node, "$name-lock", $locker) if $is_held;
	finish(@runs);

	my $verified = stat_of($node, 'VALID');
	my ($changed) = figure($node, q(SELECT count(*) FROM apikeys.ledger WHERE kind = 'usage'));
	$changed += stat_of($node, 'reservations_settled');
	is_settled($node);
	my ($versions, $updates, $hot) = versions($node);
	my ($rows, $bound) = figure(
		$node, qq(
		SELECT count(*), ceil(sum(2 * charged / step::numeric + 2
		           + CASE WHEN step = 1 THEN 0 ELSE 2 END
		             * least($seconds, CASE period WHEN 'minute' THEN 60 ELSE $seconds END) * 1000.0 / $interval / $refresh))
		  FROM load.rows));
	$bound += $changed;
	my ($heap, $fresh_heap, $index, $fresh_index, $lag, $counts_lag, $history_lag, $dead);
	($fresh_heap, $fresh_index) = fresh_size($node);
	($heap, $index, $lag, $counts_lag, $history_lag, $dead) = figure(
		$node, q(
		SELECT max(heap), max(index), max(lag), max(counts_lag), max(history_lag), max(dead) FROM load.samples));
	my ($stall) = figure($node,
		'SELECT ceil(max(ms) - min(ms)) FROM load.moments');
	my ($flushed, $usual, $oldest, $late) = figure(
		$node, qq(
		SELECT count(*), ceil(percentile_cont(0.99) WITHIN GROUP (ORDER BY lag)), ceil(max(lag)),
		       count(*) FILTER (WHERE lag > 2 * $interval)
		  FROM (SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - min("timestamp")) * 1000 AS lag
		          FROM apikeys.requests WHERE "timestamp" > '$begun' GROUP BY xmin) f));
	my $log = slurp_file($node->logfile);
	my @bad = $log =~ /^(.* (?:ERROR|WARNING|FATAL|PANIC): .*)$/mg;

	my $most = 2 * $interval + $stall;
	note "$name: $verified admitted, $versions versions ($updates updates, $hot hot), bound $bound,"
	  . " $rows rows; heap $heap of $fresh_heap, index $index of $fresh_index;"
	  . " $dead dead; lag $lag (counts $counts_lag, history $history_lag) ms, in commits $usual to $oldest ms;"
	  . " $flushed flushes of the history, $late late; the machine stalled for $stall ms";

	cmp_ok($verified, '>', 100 * $seconds, "there was a load ($name)");
	cmp_ok($flushed, '>', $flushes / 2, '... over many flushes');
	is($versions, stat_of($node, 'usage_rows_written'),
		'apikeys.stats counts what is written');
	cmp_ok($lag, '<=', $most, 'apikeys.stats shows a lag of two intervals at most');
	cmp_ok($oldest, '<=', $most, '... and the records had no larger one');
	my ($deadlocks) = figure($node, 'SELECT sum(deadlocks) FROM pg_stat_database');
	is($deadlocks, 0, 'no deadlock');
	is(stat_of($node, 'flush_failures'), 0, 'no failure of the worker');
	is("@bad", '', 'nothing in the log');
	cmp_ok($versions, '<=', $bound,
		'rows are written as ceilings move and time goes by');
	if ($is_held)
	{
		cmp_ok($heap, '<=', 1.5 * $fresh_heap / $rows * $versions + 65536,
			'the table has what was written');
	}
	else
	{
		cmp_ok($heap, '<=', 3 * $fresh_heap, 'the table stays as it was');
		cmp_ok($index, '<=', 3 * $fresh_index, '... and so does its index');
		cmp_ok($hot, '>=', 0.9 * $updates, 'rows are updated in their pages');
	}

	push @report, sprintf '%s: %d verifications, %d versions of %d rows'
	  . ' (%.0f %% of the updates HOT; bound by ceilings and time %d), table %.1f and index %.1f times a fresh one, at most %d dead rows,'
	  . ' flush lag at most %d ms (99 %%: %d; the machine stalled for %d), deadlocks %d',
	  $name, $verified, $versions, $rows, 100 * $hot / $updates, $bound,
	  $heap / $fresh_heap, $index / $fresh_index, $dead, max($lag, $oldest), $usual, $stall, $deadlocks;

	if ($is_held)
	{
		# As much consumed, by few requests and by ten times as many.
		my $time = max(2, int($seconds / 10));
		$most = 10 * (2 + $time * 1000 / $interval / $refresh);
		my ($few, $asked_few, $many, $asked_many);
		($few, $asked_few) = even_load($node, 'few', 201, 1, 10, $time);
		($many, $asked_many) = even_load($node, 'many', 211, 10, 1, $time);
		note "few: $asked_few verifications, $few rows; many: $asked_many, $many";
		cmp_ok($asked_many, '>', 5 * $asked_few, 'more was verified');
		cmp_ok($few, '<=', $most, 'few requests write few rows');
		cmp_ok($many, '<=', $most, 'many write no more');
		push @report, "as much consumed by $asked_few verifications: $few versions, by $asked_many: $many";
		my ($held) = figure($node,
			q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holder'));
		is($held, 't', 'the snapshot was held to the end');
		$holder->{run}->finish;
	}
	$node->stop;
	return;
}

series('plain', 0);
series('held', 1);

if ($ENV{APIKEYS_FIGURES})
{
	append_to_file($ENV{APIKEYS_FIGURES},
		"10|$flushes flush intervals of $interval ms with hot keys and administrators' updates,"
		  . " plain and with an old snapshot held throughout|"
		  . join('; ', @report) . "\n");
}

done_testing();
