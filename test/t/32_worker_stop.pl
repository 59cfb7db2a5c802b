# How a worker leaves, and how one takes over: whatever comes meanwhile, what was
# counted is written.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $keys = 10000;
my $node = new_server(
	'main',
	'apikeys.flush_interval' => '60s',
	'apikeys.max_tracked_keys' => 1000000,
	'log_min_messages' => 'debug1');
$node->start;
install($node);

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

sub worker
{
	return sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'apikeys worker'));
}

sub is_gone
{
	my ($pid) = @_;
	return !kill(0, $pid);
}

sql(q(SELECT apikey_plan_create('Plan', 100, 'year', plan_id => 'plan')));

# ----- SIGTERM while the worker looks whether the extension is there -----

# A lock that the look waits for, with interrupts held; the stop ends who has it.
# PostgreSQL 18 remembers extensions: the UPDATE has it forget this one.
my ($id, $secret) = issue($node, 'postgres', q('stopped', plan_id => 'plan'));
is(verify_times($node, 'postgres', $secret, 7), 7, 'some are admitted');
ok( $node->poll_query_until('postgres',
		q(SELECT state = 'idle' FROM pg_stat_activity WHERE backend_type = 'apikeys worker')),
	'the worker has begun');
sql(q(UPDATE pg_extension SET extconfig = extconfig WHERE extname = 'apikeys'));
my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN; LOCK TABLE pg_extension IN ACCESS EXCLUSIVE MODE');
sql('GRANT SELECT ON apikeys.plans TO pg_monitor');
$holder->query_safe('SELECT pg_reload_conf()');
ok( until_true(
		sub {
			$holder->query_safe(
				q(SELECT count(*) FROM pg_locks WHERE NOT granted
				   AND relation = 'pg_extension'::regclass
				   AND clock_timestamp() > waitstart + interval '1 s')) eq '1';
		}),
	'the worker looks for the extension');
my $log = -s $node->logfile;
$node->stop('fast');
unlike(slurp_file($node->logfile, $log), qr/apikeys worker.*exited with exit code 1/,
	'the worker closes the meter');
$node->start;
is(sql('SELECT count(*) FROM apikeys.requests'), 7, 'the history is complete');
is(sql("SELECT current_usage, charged, ceiling FROM apikeys.usage WHERE subject_id = '$id'"),
	'7|7|7', 'so is the usage');

# ----- The server stops under a transaction that has adjusted a count -----

is(verify_times($node, 'postgres', $secret, 73), 73, 'most of the quota is used');
my $client = $node->background_psql('postgres');
my $pid = $client->query_safe('SELECT pg_backend_pid()');
$client->query_safe("BEGIN; SELECT FROM apikey_usage_adjust('$id', -50)");
my $worker = worker();
kill 'STOP', $pid or die "client: $!";
$log = -s $node->logfile;
system_or_bail('pg_ctl', '-D', $node->data_dir, '-m', 'fast', '-W', 'stop');
ok( until_true(
		sub {
			is_gone($worker)
			  || slurp_file($node->logfile, $log) =~ /waiting for transactions that may give back/;
		}),
	'the worker comes to the end of its work');
kill 'CONT', $pid or die "client: $!";
ok(until_true(sub { !-e $node->data_dir . '/postmaster.pid' }), 'the server stops');
$node->{_pid} = undef;
$node->start;
is(sql("SELECT current_usage, charged FROM apikeys.usage WHERE subject_id = '$id'"),
	'80|80', 'what was not committed is not written');

# ----- A ceiling while keys are swept -----

sql(q(
	SELECT apikey_plan_create('Small', 10, 'year', plan_id => 'small');
	INSERT INTO apikeys.keys (id, name, api_id, start, digest, expires_at, created_at)
	SELECT apikeys.uuidv7(), 'old', 'default', 'ak_xxxx', sha256(n::text::bytea),
	       now() - interval '1 year', now() - interval '2 years'
	  FROM generate_series(1, 30000) n));
my ($small_id, $small) = issue($node, 'postgres', q('small', plan_id => 'small'));

# And the usage of as many that are gone, in more steps than one: the last is of
# one key, in many periods.
sql(qq(
	INSERT INTO apikeys.usage (subject_id, subject, period, period_start, current_usage,
	                           charged, ceiling, incarnation, updated_at)
	SELECT k, 'key', 'minute', now() - n * interval '1 minute', 1, 1, 1,
	       gen_random_uuid(), now() - interval '2 days'
	  FROM (SELECT gen_random_uuid(), n FROM generate_series(1, 20000) n
	        UNION ALL SELECT 'ffffffff-ffff-4fff-bfff-ffffffffffff', n FROM generate_series(1, 15000) n
	        UNION ALL SELECT '$id', 1) o (k, n)));
$node->stop('fast');
$node->append_conf('postgresql.conf', "apikeys.expired_key_grace = 0");
$node->start;
is( sql(qq(
		DO \$\$
		BEGIN
			PERFORM apikey_verify('$secret');
			WHILE NOT EXISTS (SELECT FROM apikeys.keys WHERE deleted_at IS NOT NULL) LOOP
			END LOOP;
		END \$\$;
		SELECT code FROM apikey_verify('$small');
		SELECT EXISTS (SELECT FROM apikeys.keys WHERE name = 'old' AND deleted_at IS NULL))),
	"VALID\nt", 'who waits for a ceiling does not wait for all keys to be swept');

ok( $node->poll_query_until('postgres',
		q(SELECT NOT EXISTS (SELECT FROM apikeys.usage WHERE period = 'minute' AND subject_id NOT IN (SELECT id FROM apikeys.keys)))),
	'the usage of keys that are gone is removed');
is(sql("SELECT count(*) FROM apikeys.usage WHERE period = 'minute' AND subject_id = '$id'"),
	1, 'that of others stays');

# ----- Refunds while a worker begins -----

my @refunds = split /\n/, sql(qq(
	SELECT format('SAVEPOINT s%s; SELECT FROM apikey_verify(%L, on_abort => ''refund'');', n,
	              (apikey_create('k' || n, plan_id => 'plan')).api_key)
	  FROM generate_series(1, $keys) n));
$client = $node->background_psql('postgres');
$client->query_safe('BEGIN');
$client->query_safe(join "\n", @refunds);
$worker = worker();
sql("SELECT pg_terminate_backend($worker)");
ok(until_true(sub { is_gone($worker) }), 'the worker leaves');
$log = -s $node->logfile;
$client->query_safe(join "\n", map { "ROLLBACK TO s$_;" } reverse 1 .. $keys);
$client->query_safe('ROLLBACK');
isnt(worker(), '', 'another has come');
$node->stop('fast');
unlike(slurp_file($node->logfile, $log),
	qr/cannot affect row|apikeys worker.*exited with exit code 1/, 'and could do its work');
$node->start;
is(sql("SELECT sum(current_usage) FROM apikeys.usage WHERE subject_id NOT IN ('$id', '$small_id')"),
	0, 'all was given back');

# ----- A refund while the meter closes -----

# All counts are written, and the history waits for a lock: it holds what came
# after the worker had begun.
my ($late_id, $late) = issue($node, 'postgres', q('late', plan_id => 'plan'));
$client = $node->background_psql('postgres');
$client->query_safe('BEGIN');
foreach my $time (1 .. 2)
{
	is($client->query_safe("SELECT code FROM apikey_verify('$late', cost => 25, on_abort => 'refund')"),
		'VALID', 'some of a quota is used');
	ok( $node->poll_query_until('postgres',
			q(SELECT state = 'idle' FROM pg_stat_activity WHERE backend_type = 'apikeys worker')),
		'the worker has nothing to do');
}
$holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN; LOCK TABLE apikeys.requests IN ACCESS EXCLUSIVE MODE');
$worker = worker();
sql("SELECT pg_terminate_backend($worker)");
ok( $node->poll_query_until('postgres',
		"SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = $worker)"),
	'the worker closes the meter');
$client->query_safe('ROLLBACK');
$holder->query_safe('ROLLBACK');
ok(until_true(sub { is_gone($worker) }), 'and leaves');
is(sql("SELECT current_usage, charged FROM apikeys.usage WHERE subject_id = '$late_id'"),
	'0|0', 'with what was given back meanwhile written');

# ----- The server stops while a worker begins that has a refund to write -----

# Something is given back when no worker is there; the next one waits for a lock
# when the server stops: before it knows that the extension is there, or when it
# opens the meter (where it gives up soon, so it is stopped as well).
foreach my $table (qw(pg_extension apikeys.incarnations))
{
	my ($id, $secret) = issue($node, 'postgres', q('begins', plan_id => 'plan'));
	my $client = $node->background_psql('postgres');
	$client->query_safe('BEGIN');
	is($client->query_safe("SELECT code FROM apikey_verify('$secret', cost => 25, on_abort => 'refund')"),
		'VALID', "$table: some of a quota is used");
	my $worker = worker();
	sql("SELECT pg_terminate_backend($worker)");
	ok(until_true(sub { is_gone($worker) }), 'the worker leaves');
	my $holder = $node->background_psql('postgres');
	$holder->query_safe("BEGIN; LOCK TABLE $table IN ACCESS EXCLUSIVE MODE");
	$client->query_safe('ROLLBACK');
	my $waits = qq(
		SELECT coalesce(max(pid), 0) FROM pg_locks
		 WHERE NOT granted AND relation = '$table'::regclass);
	ok( until_true(
			sub {
				my $pid = $holder->query_safe($waits) or return 0;
				kill 'STOP', $pid;
				return 1 if $holder->query_safe($waits) eq $pid;
				kill 'CONT', $pid;
				return 0;
			}),
		'the next one waits');
	$worker = $holder->query_safe($waits);
	my $holds = $holder->query_safe('SELECT pg_backend_pid()');
	system_or_bail('pg_ctl', '-D', $node->data_dir, '-m', 'fast', '-W', 'stop');
	ok(until_true(sub { is_gone($holds) }), 'the server stops');
	kill 'CONT', $worker or die "worker: $!";
	ok(until_true(sub { !-e $node->data_dir . '/postmaster.pid' }), 'and has stopped');
	$node->{_pid} = undef;
	$node->start;
	is(sql("SELECT current_usage, charged FROM apikeys.usage WHERE subject_id = '$id'"),
		'0|0', 'what was given back is written');
}

$node->stop;
done_testing();
