# The worker writes counts and history, leaves when there is nothing to do,
# and comes back; the live figures are never behind meanwhile.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $interval = 3;
my $node = new_server(
	'main',
	'apikeys.flush_interval' => "${interval}s",
	'apikeys.last_used_interval' => '1s',
	'apikeys.worker_idle_timeout' => '60s');
$node->start;
install($node);
$node->safe_psql('postgres',
	q(SELECT apikey_plan_create('Plan', 1000, 'year', plan_id => 'plan')));
my ($id, $secret) = issue($node, 'postgres', q('key', plan_id => 'plan'));

my $workers = q(SELECT count(*) FROM pg_stat_activity
	WHERE backend_type = 'apikeys worker');
is( $node->safe_psql(
		'postgres', q(SELECT count(*) FROM pg_stat_activity
			WHERE backend_type = 'apikeys launcher')),
	'1',
	'the launcher is there');

# ----- Live figures -----

my $up_to_date = $node->safe_psql(
	'postgres', qq(
	CREATE TABLE seen (n int, told bigint, usage bigint, view bigint);
	DO \$\$
	BEGIN
		FOR n IN 1 .. 50 LOOP
			INSERT INTO seen
			SELECT n, v.current_usage, u.current_usage, l.current_usage
			  FROM apikey_verify('$secret') v,
			       LATERAL (SELECT current_usage FROM apikey_usage(v.key_id)) u,
			       LATERAL (SELECT current_usage FROM apikeys.live_usage l
			                 WHERE l.key_id = v.key_id) l;
		END LOOP;
	END \$\$;
	SELECT count(*) FROM seen WHERE told = n AND usage = n AND view = n));
is($up_to_date, '50', 'apikey_usage and live_usage agree with each verification');
is(usage($node, 'postgres', $id), '50', 'another session sees the count');
is( $node->safe_psql(
		'postgres', qq(
		SELECT subject, current_usage, "limit", remaining
		  FROM apikeys.live_usage WHERE key_id = '$id')),
	'key|50|1000|950',
	'and so does the view');

# ----- History -----

ok(flushed($node, 'postgres', 50), 'the history is complete');
$node->safe_psql('postgres',
	"SELECT code FROM apikey_verify('$secret', '/late', 'GET', '192.0.2.1')");
my $waited = $node->safe_psql(
	'postgres', q(
	DO $$
	BEGIN
		WHILE NOT EXISTS (SELECT FROM apikeys.requests WHERE endpoint = '/late')
			AND clock_timestamp() < now() + '1 minute' LOOP
			PERFORM pg_sleep(0.02);
		END LOOP;
	END $$;
	SELECT extract(epoch FROM clock_timestamp() - timestamp)
	  FROM apikeys.requests WHERE endpoint = '/late'));
cmp_ok($waited, '<=', 2 * $interval,
	'a request is in the history within two flush intervals');
is( $node->safe_psql(
		'postgres', q(
		SELECT method, status, code, ip_address, cost
		  FROM apikeys.requests WHERE endpoint = '/late')),
	'GET|allowed|VALID|192.0.2.1|1',
	'with all that was said of it');

# ----- Counts -----

$node->append_conf('postgresql.conf', q(apikeys.flush_interval = '200ms'));
$node->reload;
my $row = qq(
	SELECT current_usage, charged FROM apikeys.usage WHERE subject_id = '$id');
ok($node->poll_query_until('postgres', $row, '51|51'),
	'the row of an idle key holds the exact count');

ok( $node->poll_query_until(
		'postgres', "SELECT last_used_at IS NOT NULL FROM apikeys.keys"),
	'last_used_at is set');
is( $node->safe_psql(
		'postgres', q(
		SELECT updated_at = created_at, last_used_at > created_at,
		       last_used_at <= clock_timestamp()
		  FROM apikeys.keys)),
	't|t|t',
	'to a time of use, and updated_at is left alone');
my $last = $node->safe_psql('postgres', 'SELECT last_used_at FROM apikeys.keys');
is(verify($node, 'postgres', $secret), 'VALID', 'another request');
ok( $node->poll_query_until(
		'postgres', "SELECT last_used_at > '$last' FROM apikeys.keys"),
	'last_used_at moves on');

# An administrator's open transaction does not hold up the worker. What it could
# not write meanwhile it writes afterwards, without another use.
ok( $node->poll_query_until('postgres',
		q(SELECT clock_timestamp() > last_used_at + interval '1 s' FROM apikeys.keys)),
	'last_used_at is due again');
my $before = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
my $admin = $node->background_psql('postgres');
$admin->query_safe(q(BEGIN; UPDATE apikeys.keys SET name = 'locked'));
is(verify_times($node, 'postgres', $secret, 3),
	3, 'requests while the key is being changed');
ok(flushed($node, 'postgres', 55), 'are in the history all the same');
ok($node->poll_query_until('postgres', $row, '55|55'), 'and counted');
$admin->query_safe('COMMIT');
$admin->quit;
is( $node->safe_psql('postgres', 'SELECT name FROM apikeys.keys'),
	'locked', 'the change is kept');
ok( $node->poll_query_until(
		'postgres', "SELECT last_used_at > '$before' FROM apikeys.keys"),
	'and last_used_at is written afterwards');

# ----- Leaving and coming back -----

is($node->safe_psql('postgres', $workers), '1', 'one worker is there');
$node->append_conf(
	'postgresql.conf', q(
apikeys.worker_idle_timeout = '1s'
apikeys.flush_interval = '100ms'));
$node->reload;
ok($node->poll_query_until('postgres', $workers, '0'),
	'the worker leaves when idle');
is(usage($node, 'postgres', $id), '55', 'the count is known without it');

is(verify_times($node, 'postgres', $secret, 5),
	5, 'requests when there is no worker');
is(usage($node, 'postgres', $id), '60', 'are counted at once');
ok(flushed($node, 'postgres', 60), 'a worker comes and writes them');
ok($node->poll_query_until('postgres', $row, '60|60'),
	'and the count');
ok($node->poll_query_until('postgres', $workers, '0'), 'and leaves again');

# One that has to stay, since something may be given back, stays quietly.
SKIP:
{
	skip 'processor time is read in /proc, which is for Linux', 2 if $^O ne 'linux';
	my $open = $node->background_psql('postgres');
	$open->query_safe("BEGIN; SELECT FROM apikey_verify('$secret', on_abort => 'refund')");
	ok( $node->poll_query_until(
			'postgres', q(
			SELECT backend_start < clock_timestamp() - interval '3 s' FROM pg_stat_activity
			 WHERE backend_type = 'apikeys worker')),
		'the worker stays while a charge can be given back');
	my ($pid, $began) = split /\|/, $node->safe_psql('postgres', q(
		SELECT pid, clock_timestamp() FROM pg_stat_activity
		 WHERE backend_type = 'apikeys worker'));
	my $time = sub { (split ' ', slurp_file("/proc/$pid/stat") =~ s/.*\)//r)[ 11, 12 ] };
	my @before = $time->();
	$node->poll_query_until('postgres', "SELECT clock_timestamp() > '$began'::timestamptz + '2 s'")
	  or die 'time does not pass';
	my @after = $time->();
	cmp_ok($after[0] + $after[1] - $before[0] - $before[1], '<', 50,
		'and takes no processor for it');
	$open->query_safe('ROLLBACK');
	$open->quit;
}
ok($node->poll_query_until('postgres', $workers, '0'), 'and leaves when it has been');

# A worker that is terminated leaves nothing behind either.
$node->append_conf('postgresql.conf', q(
apikeys.worker_idle_timeout = '60s'
apikeys.flush_interval = '60s'));
$node->reload;
is(verify_times($node, 'postgres', $secret, 10), 10, 'more requests');
ok($node->poll_query_until('postgres', $workers, '1'), 'with a worker');
is( $node->safe_psql(
		'postgres', q(
		SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
		 WHERE backend_type = 'apikeys worker')),
	't',
	'the worker is terminated');
is(verify_times($node, 'postgres', $secret, 10),
	10, 'requests go on after that');
is(usage($node, 'postgres', $id), '80', 'none is lost or counted twice');
$node->append_conf('postgresql.conf', q(apikeys.flush_interval = '100ms'));
$node->reload;
ok(flushed($node, 'postgres', 81), 'nor is its history, with what was given back');

# Nothing is lost between a worker that leaves and the next one, while clients
# go on verifying.
my $many = 300_000;
my ($busy, $busy_secret) = issue($node, 'postgres', q('busy'));
my $client = $node->background_psql('postgres');
$client->query_until(
	qr/started/, qq(\\echo started
SELECT count(*) FILTER (WHERE (apikey_verify('$busy_secret')).valid)
  FROM generate_series(1, $many);
));
foreach my $change (1 .. 4)
{
	ok( $node->poll_query_until(
			'postgres', q(
			WITH worker AS MATERIALIZED (
				SELECT pid FROM pg_stat_activity
				 WHERE backend_type = 'apikeys worker')
			SELECT count(*) > 0 FROM worker WHERE pg_terminate_backend(pid))),
		'a worker is terminated under load');
}
is($client->query_safe(''), $many, 'a client was served meanwhile');
$client->quit;
is(usage($node, 'postgres', $busy), $many, 'all its requests are counted');
ok(flushed($node, 'postgres', 81 + $many), 'and in the history');
ok( $node->poll_query_until(
		'postgres', qq(
		SELECT current_usage = $many FROM apikeys.usage
		 WHERE subject_id = '$busy')),
	'and in the table');

# A worker that cannot write must not say yes for ever. Limits of less than 64
# wait for their ceiling.
$node->safe_psql('postgres',
	q(SELECT apikey_plan_create('Few', 10, 'year', plan_id => 'few')));
my ($few, $few_secret) = issue($node, 'postgres', q('few', plan_id => 'few'));
$node->append_conf('postgresql.conf', q(apikeys.meter_timeout = '1s'));
$node->reload;
my $blocker = $node->background_psql('postgres');
$blocker->query_safe(
	'BEGIN; LOCK TABLE apikeys.usage IN EXCLUSIVE MODE');
my ($ret, $stdout, $stderr) = $node->psql('postgres',
	"SELECT code FROM apikey_verify('$few_secret')");
isnt($ret, 0, 'a ceiling that cannot be raised is an error');
unlike($stderr, qr/\Q$few_secret\E/, 'which does not repeat the secret');
ok( $node->poll_query_until(
		'postgres', q(
		SELECT count(*) > 0 FROM pg_locks
		 WHERE pid IN (SELECT pid FROM pg_stat_activity
		                WHERE backend_type = 'apikeys worker')
		   AND classid = 'pg_extension'::regclass AND granted)),
	'a worker that waits in a transaction keeps the extension');
$blocker->query_safe('ROLLBACK');

# Nor may it hang where the count cannot be read.
my (undef, $fresh_secret) = issue($node, 'postgres', q('fresh', plan_id => 'few'));
foreach my $lock ('LOCK TABLE apikeys.usage IN ACCESS EXCLUSIVE MODE',
	'REINDEX INDEX apikeys.usage_pkey')
{
	$blocker->query_safe("BEGIN; $lock");
	($ret, $stdout, $stderr) = $node->psql('postgres',
		"\\set VERBOSITY verbose\nSELECT code FROM apikey_verify('$fresh_secret')",
		timeout => 60, timed_out => \my $timed_out);
	like($stderr, qr/53000: .*within 1000 ms.*Relation "usage.*" is locked/s,
		"a count that cannot be read is an error ($lock)");
	$blocker->query_safe('ROLLBACK');
}
$blocker->quit;
$node->append_conf('postgresql.conf', q(apikeys.meter_timeout = '60s'));
$node->reload;
is(verify($node, 'postgres', $few_secret),
	'VALID', 'verification goes on when the worker can write again');
is(verify($node, 'postgres', $fresh_secret), 'VALID', 'and read');

# ----- Ceilings before the interval -----

# Whose ceiling is half used has the next one on its way, however many there are:
# a second request is the last that a limit of 128 admits without a row.
$node->append_conf('postgresql.conf', q(apikeys.flush_interval = '60s'));
$node->restart;
$node->safe_psql('postgres', q(
	SELECT apikey_plan_create('Steps', 128, 'year', plan_id => 'steps');
	CREATE TABLE many AS SELECT k.id, k.api_key
	  FROM generate_series(1, 1000) n, apikey_create('many ' || n, plan_id => 'steps') k));
is(verify($node, 'postgres', $few_secret), 'VALID', 'the meter is open');
ok( $node->poll_query_until('postgres', q(
		SELECT state = 'idle' FROM pg_stat_activity WHERE backend_type = 'apikeys worker')),
	'and its interval long');
is( $node->safe_psql('postgres', q(
	SELECT count(*) FROM many WHERE (apikey_verify(api_key)).valid;
	SELECT count(*) FROM many WHERE (apikey_verify(api_key)).valid)),
	"1000\n1000", 'many keys are used twice');
ok( $node->poll_query_until('postgres', q(
		SELECT count(*) = 1000 FROM apikeys.usage u JOIN many m ON m.id = u.subject_id
		 WHERE u.ceiling > 2)),
	'and all have their next ceilings');
is( $node->safe_psql('postgres', q(
	SELECT max(u.updated_at) - min(u.updated_at) < '15 s'
	  FROM apikeys.usage u JOIN many m ON m.id = u.subject_id)),
	't', 'long before the interval is over');

$node->stop;
done_testing();
