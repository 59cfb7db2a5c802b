# What a DBA watches: apikeys.health tells how far the worker is behind, what
# went wrong, and how full the shared memory is.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'main',
	'apikeys.flush_interval' => '100ms',
	'apikeys.history_buffer' => '1MB',
	'apikeys.history_wait_timeout' => '50ms',
	'apikeys.max_tracked_keys' => '1000',
	'apikeys.max_reservations' => '20',
	'apikeys.worker_idle_timeout' => '60s');
$node->start;
install($node);
$node->safe_psql('postgres',
	q(SELECT apikey_plan_create('Plan', 1000, 'year', plan_id => 'plan'),
	         apikey_plan_create('Plan', 10, 'year', plan_id => 'small')));
my ($id, $secret) = issue($node, 'postgres', q('key', plan_id => 'plan'));
my (undef, $free) = issue($node, 'postgres', q('free'));

sub health
{
	my ($columns) = @_;
	return $node->safe_psql('postgres', "SELECT $columns FROM apikeys.health");
}

sub until_health
{
	my ($condition, $name) = @_;
	return ok(
		$node->poll_query_until('postgres', "SELECT $condition FROM apikeys.health"),
		$name);
}

# ----- Nothing is wrong -----

until_health('NOT meter_open AND worker_pid IS NULL', 'nobody verifies');
is( health('flush_lag, last_flush_at, flush_failures, last_failure_at, last_failure_code, last_failure_message'),
	'00:00:00||0|||',
	'nothing has been written, and nothing has failed');
is( health('history_used, history_capacity, history_dropped, meter_used, meter_capacity,'
		  . ' evictions, reservations_used, reservations_capacity'),
	'0|1048576|0|0|1000|0|0|20',
	'the shared memory is empty');

verify($node, 'postgres', $_) foreach $secret, $free, 'junk';
until_health('meter_open AND worker_pid IS NOT NULL', 'a worker is there');
is( health(q(worker_pid = (SELECT pid FROM pg_stat_activity WHERE backend_type = 'apikeys worker'))),
	't', 'by its process id');
is(health(q(outcomes ->> 'VALID', outcomes ->> 'MALFORMED')), '2|1', 'outcomes');
is(health('meter_used'), '2', 'counts in the meter');
is(health('history_used BETWEEN 8192 AND 65536'), 't', 'chunks that are kept');
until_health(q(flush_lag = '0'), 'all is written');
until_health(q(last_flush_at BETWEEN now() - interval '1 minute' AND clock_timestamp()),
	'by a flush a moment ago');

# Reservations.
my $reserved = $node->safe_psql('postgres', "SELECT reservation_id FROM apikey_reserve('$secret', 10)");
is(health('reservations_used'), '1', 'a reservation');
$node->safe_psql('postgres', "SELECT FROM apikey_settle('$reserved', 1)");
is(health('reservations_used'), '0', 'that was settled');
my $event = $node->pg_version >= 17 ? 'ApikeysWorkerMain' : 'Extension';
until_health("worker_wait_event = '$event'", 'it says what it waits for');

# ----- The worker cannot write -----

my $blocker = $node->background_psql('postgres');
foreach my $table (qw(usage requests))
{
	my $is_counts = $table eq 'usage';
	my $own = $is_counts ? 'counts_lag_ms' : 'history_lag_ms';
	until_health(q(flush_lag = '0'), "all is written again");
	my $failures = health('flush_failures');

	# A worker that had nothing to do is behind from the next request on, not
	# since it slept.
	my $slept = $node->safe_psql(
		'postgres', q(
		DO $$
		BEGIN
			WHILE (SELECT clock_timestamp() < last_flush_at + interval '5 s' FROM apikeys.health) LOOP
				PERFORM pg_sleep(0.1);
			END LOOP;
		END $$;
		SELECT value >= 4 FROM apikeys.stats WHERE name = 'seconds_since_flush'));
	is($slept, 't', 'the worker has had nothing to do for some time');
	$blocker->query_safe("BEGIN; LOCK apikeys.$table IN SHARE MODE");

	# Its row is there, and due after ten intervals.
	is(verify($node, 'postgres', $free), 'VALID', "a verification while $table is locked");
	my $first = $node->safe_psql(
		'postgres', qq(
		CREATE TEMPORARY TABLE lag (ms bigint);
		DO \$\$
		BEGIN
			WHILE NOT EXISTS (SELECT FROM lag WHERE ms > 100) LOOP
				INSERT INTO lag SELECT value FROM apikeys.stats WHERE name = '$own';
			END LOOP;
		END \$\$;
		SELECT max(ms) < 3000 FROM lag));
	is($first, 't', 'it is behind by what has come since');
	until_health(q(flush_lag > '3 s'), 'the lag grows');
	is( $node->safe_psql('postgres', "SELECT value > 3000 FROM apikeys.stats WHERE name = '$own'"),
		't', "and $own");
	is( health(qq(flush_failures > $failures, last_failure_code, last_failure_message,
			last_failure_at BETWEEN now() - interval '5 s' AND clock_timestamp())),
		't|55P03|canceling statement due to lock timeout|t',
		'why is said');
	if (!$is_counts)
	{
		$node->safe_psql(
			'postgres', qq(
			SELECT count((apikey_verify('$free', repeat('/x', 500))).code) FROM generate_series(1, 500)));
		is(health('history_used > 500000'), 't', 'the history buffer fills');
	}
	$blocker->query_safe('COMMIT');
	until_health(q(flush_lag < '500 ms'), 'the lag goes when the lock does');
}
is(health('last_failure_code'), '55P03', 'what failed last stays to be seen');
$blocker->quit;

# A session that waits for the worker says so.
$node->append_conf('postgresql.conf', q(apikeys.meter_timeout = '60s'));
$node->reload;
my $worker = health('worker_pid');
my (undef, $small) = issue($node, 'postgres', q('small', plan_id => 'small'));
kill 'STOP', $worker;
my $waiter = $node->background_psql('postgres');
$waiter->query_until(qr/begun/, "\\echo begun\nSELECT code FROM apikey_verify('$small');\n");
my $waits = $node->pg_version >= 17 ? 'ApikeysWorker' : 'Extension';
ok( $node->poll_query_until(
		'postgres', qq(
		SELECT count(*) = 1 FROM pg_stat_activity
		 WHERE query ~ 'apikey_verify' AND pid <> pg_backend_pid() AND wait_event = '$waits')),
	'a session that waits says what for');
until_health(q(flush_lag > '1 s'), 'and so does the lag');
kill 'CONT', $worker;
$waiter->quit;
until_health(q(flush_lag = '0'), 'until the worker goes on');

$node->stop;
done_testing();
