# The launcher and the worker come back after a signal, and the server stops
# whatever its worker waits for.

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
	'max_wal_senders' => '2',
	'wal_level' => 'replica',
	'apikeys.flush_interval' => '100ms',
	'apikeys.worker_idle_timeout' => '1s');
$node->start;
install($node);
$node->safe_psql('postgres',
	q(SELECT apikey_plan_create('Few', 10, 'year', plan_id => 'few')));
my ($id, $secret) = issue($node, 'postgres', q('key', plan_id => 'few'));

sub processes
{
	my ($type) = @_;
	return "SELECT count(*) FROM pg_stat_activity WHERE backend_type = '$type'";
}

# ----- The launcher -----

is(verify($node, 'postgres', $secret), 'VALID', 'a first request');
ok($node->poll_query_until('postgres', processes('apikeys worker'), '0'),
	'its worker has left');
my $launcher = $node->safe_psql('postgres',
	q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'apikeys launcher'));
is($node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher, 60000)"),
	't', 'the launcher is terminated');
is(verify($node, 'postgres', $secret),
	'VALID', 'a request that needs it waits for the next launcher');
isnt( $node->safe_psql('postgres',
		q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'apikeys launcher')),
	$launcher, 'which is another');

# ----- A synchronous standby that is not there -----

# Once it is idle, a small limit has no ceiling beyond its count.
ok( $node->poll_query_until(
		'postgres', 'SELECT current_usage = 2 AND ceiling = 2 FROM apikeys.usage'),
	'the key is idle');

$node->append_conf(
	'postgresql.conf', q(
apikeys.worker_idle_timeout = '60s'
apikeys.meter_timeout = '1s'
synchronous_standby_names = 'nobody'));
$node->reload;
ok( $node->poll_query_until(
		'postgres', "SHOW synchronous_standby_names", 'nobody'),
	'commits wait for a standby');

# They do so once the checkpointer knows.
$node->safe_psql('postgres', 'CHECKPOINT');
my ($ret, $stdout, $stderr) =
  $node->psql('postgres', "SELECT code FROM apikey_verify('$secret')");
isnt($ret, 0, 'a ceiling that the standby does not confirm admits nothing');
like($stderr, qr/could not admit the request/, 'but is an error');
ok( $node->poll_query_until(
		'postgres', q(
		SELECT count(*) FROM pg_stat_activity
		 WHERE backend_type = 'apikeys worker' AND wait_event = 'SyncRep'), '1'),
	'the worker waits for the standby');

# The server warns who cancels that wait, and goes on: the ceiling must not.
my $cancelled = -s $node->logfile;
$node->safe_psql('postgres', q(
	SELECT pg_cancel_backend(pid) FROM pg_stat_activity
	 WHERE backend_type = 'apikeys worker' AND wait_event = 'SyncRep'));
$node->wait_for_log(qr/canceling wait for synchronous replication/, $cancelled);
($ret, $stdout, $stderr) =
  $node->psql('postgres', "SELECT code FROM apikey_verify('$secret')");
isnt($ret, 0, 'nor does it where somebody cancels the wait');
like($stderr, qr/could not admit the request/, 'which is an error too');

# pg_ctl gives up after PGCTLTIMEOUT; stop() then dies.
{
	local $ENV{PGCTLTIMEOUT} = 30;
	$node->stop('fast');
}
pass('the server stops all the same');

$node->adjust_conf('postgresql.conf', 'synchronous_standby_names', "''");
$node->append_conf('postgresql.conf', "apikeys.meter_timeout = '60s'");
$node->start;
is(usage($node, 'postgres', $id), '2', 'and knows what was admitted');
is(verify_times($node, 'postgres', $secret, 20),
	8, 'no more and no less is left');
$node->stop;

# ----- No room for the launcher -----

$node->append_conf('postgresql.conf', "max_worker_processes = 0\napikeys.meter_timeout = '100ms'");
$node->start;
(undef, undef, $stderr) = $node->psql('postgres', "SELECT code FROM apikey_verify('$secret')");
like($stderr, qr/launcher, which starts workers, is not running.*max_worker_processes/s,
	'where there is no launcher the error says so');
$node->stop;

# ----- A database that lets no worker in -----

$node->append_conf('postgresql.conf', "max_worker_processes = 8\napikeys.meter_timeout = '1s'");
$node->start;
(undef, undef, $stderr) = $node->psql('postgres', qq(
	UPDATE pg_database SET datallowconn = false WHERE datname = 'postgres';
	SELECT code FROM apikey_verify('$secret')));
like($stderr, qr/No apikeys worker is attached.*does not accept connections/s,
	'and where the database admits no worker');

$node->stop;
done_testing();
