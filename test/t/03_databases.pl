# Databases of one server have nothing to do with each other, and a worker
# is in nobody's way.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_server('main');
$node->start;

foreach my $database ('one', 'two', 'three')
{
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	install($node, $database);
	$node->safe_psql($database,
		q(SELECT apikey_plan_create('Plan', 640, 'year', plan_id => 'plan')));
}

# ----- Counts are apart -----

my ($id, $secret) = issue($node, 'one', q('key', plan_id => 'plan'));

# The same key, with its id and secret, in another database.
my $columns = join ', ', qw(id name plan_id start digest);
my $row = $node->safe_psql('one',
	"SELECT format('(%L, %L, %L, %L, %L)', $columns) FROM apikeys.keys");
foreach my $database ('two', 'three')
{
	$node->safe_psql(
		$database, qq(
		INSERT INTO apikeys.apis (id) VALUES ('default');
		INSERT INTO apikeys.keys ($columns) VALUES $row));
}

is(verify_times($node, 'one', $secret, 30), 30, 'requests in one database');
is(verify_times($node, 'two', $secret, 20), 20, 'requests in another');
is(usage($node, 'one', $id), '30', 'the count of the first');
is(usage($node, 'two', $id), '20', 'the count of the second');
is(usage($node, 'three', $id), '0', 'the count where nothing was requested');
ok(flushed($node, 'one', 30), 'the history of the first');
ok(flushed($node, 'two', 20), 'the history of the second');
$node->safe_psql('two', 'DELETE FROM apikeys.keys');
is(verify($node, 'two', $secret), 'NOT_FOUND', 'a key deleted in one');
is(verify($node, 'one', $secret), 'VALID', 'is valid in the other');

my $worker = q(SELECT count(*) FROM pg_stat_activity
	WHERE backend_type = 'apikeys worker' AND datname = '%s');

# Does what needs a database that nobody is connected to, while its worker is
# there. The server itself gives up after 5 seconds.
sub quickly
{
	my ($database, $statement) = @_;
	ok( $node->poll_query_until(
			'postgres', sprintf($worker, $database), '1'),
		"a worker is in $database");
	my $start = time;
	my ($ret, $stdout, $stderr) = $node->psql('postgres', $statement);
	is($stderr, '', "$statement raises no error");
	is($ret, 0, "$statement succeeds");
	cmp_ok(time - $start, '<', 4, 'and does not wait for the worker');
	return;
}

# ----- CREATE DATABASE ... TEMPLATE, RENAME, DROP -----

is(verify($node, 'one', $secret), 'VALID', 'a last request');
quickly('one', 'CREATE DATABASE copy TEMPLATE one');
is(usage($node, 'one', $id), '32', 'the template keeps its count');
is(usage($node, 'copy', $id), '32', 'the copy begins with it');
is(verify_times($node, 'copy', $secret, 8), 8, 'requests in the copy');
is(usage($node, 'one', $id), '32', 'are not the template\'s');
is(usage($node, 'copy', $id), '40', 'but the copy\'s');
is(verify($node, 'one', $secret), 'VALID', 'the template goes on');

quickly('one', 'ALTER DATABASE one RENAME TO uno');
is(usage($node, 'uno', $id), '33', 'a renamed database keeps its counts');
is(verify($node, 'uno', $secret), 'VALID', 'and goes on');
ok(flushed($node, 'uno', 34), 'its history too');

is(verify($node, 'copy', $secret), 'VALID', 'a request in the copy');
quickly('copy', 'DROP DATABASE copy');
is(verify($node, 'uno', $secret), 'VALID', 'the others live on');

# A statement that fails must not keep the worker away.
my $session = $node->background_psql('uno');
my ($ret, $stdout, $stderr) =
  $node->psql('postgres', 'ALTER DATABASE uno RENAME TO one');
isnt($ret, 0, 'a database in use cannot be renamed');
$session->quit;
is(verify($node, 'uno', $secret), 'VALID', 'verification goes on in it');
ok(flushed($node, 'uno', 36), 'and so does its worker');

# ----- DROP EXTENSION -----

$node->safe_psql(
	'uno', q(
	CREATE TABLE saved AS SELECT * FROM apikeys.keys;
	DROP EXTENSION apikeys;
	CREATE EXTENSION apikeys;
	INSERT INTO apikeys.apis (id) VALUES ('default');
	SELECT apikey_plan_create('Plan', 640, 'year', plan_id => 'plan');
	INSERT INTO apikeys.keys SELECT * FROM saved));
is(usage($node, 'uno', $id),
	'0', 'a new installation knows nothing of the old one\'s counts');
is(verify_times($node, 'uno', $secret, 641),
	640, 'its quota is whole');
ok(flushed($node, 'uno', 641), 'its history holds its own requests');

# A session that verified before must notice.
my $old = $node->background_psql('three');
is($old->query_safe("SELECT code FROM apikey_verify('$secret')"),
	'VALID', 'a session verifies');
$node->safe_psql('three', 'DROP EXTENSION apikeys; CREATE EXTENSION apikeys');
is($old->query_safe("SELECT code FROM apikey_verify('$secret')"),
	'NOT_FOUND', 'it knows no key of the extension before');
$old->quit;

# A database whose name is used again is another one.
$node->safe_psql('postgres', 'DROP DATABASE two');
$node->safe_psql('postgres', 'CREATE DATABASE two');
install($node, 'two');
is( $node->safe_psql('two', 'SELECT count(*) FROM apikeys.live_usage'),
	'0', 'a new database of an old name has no counts');

# ----- Who verifies while the worker is kept away -----

# Clients that verify one after another, until they are told to stop, and say
# how long the slowest took. A worker that is not started again for one of them
# lets it wait for all of apikeys.meter_timeout.
my $workers = sprintf $worker, 'uno';
my $waiting = q(SELECT count(*) FROM pg_stat_activity WHERE datname = 'uno'
	AND wait_event_type = 'Extension' AND backend_type = 'client backend');
my $updates = 8;
$node->safe_psql('uno', 'CREATE TABLE stop (); CREATE TABLE slowest (took interval)');
my ($busy_id, $busy) =
  issue($node, 'uno', q('busy', plan_id => (apikey_plan_create('Busy', 1000000000, 'year')).id));
my $loop = qq(
	DO \$\$
	DECLARE
		began timestamptz;
		slowest interval = '0';
	BEGIN
		WHILE NOT EXISTS (SELECT FROM stop) LOOP
			began := clock_timestamp();
			PERFORM code FROM apikey_verify('$busy');
			slowest := greatest(slowest, clock_timestamp() - began);
		END LOOP;
		INSERT INTO slowest VALUES (slowest);
	END
	\$\$) =~ s/\\//gr;
my @clients = map {
	IPC::Run::start([ 'psql', '-Xq', '-d', $node->connstr('uno'), '-c', $loop ],
		'<', \undef, '>', \my $out, '2>', \my $err)
} 1 .. 4;
my $updated = 0;
while ($updated < $updates)
{
	last unless until_true(
		sub {
			return 1 if grep { !$_->pumpable } @clients;
			return $node->safe_psql('postgres', $workers) eq '1';
		});
	last if grep { !$_->pumpable } @clients;
	$node->safe_psql('uno', 'SET client_min_messages = warning; ALTER EXTENSION apikeys UPDATE');
	$updated++;
}
is($updated, $updates, 'updates while clients verify, each with the worker back');
$node->safe_psql('uno', 'INSERT INTO stop DEFAULT VALUES');
is(scalar(grep { !$_->finish } @clients), 0, 'no verification failed');
is( $node->safe_psql('uno', q(SELECT count(*), max(took) < '10 s' FROM slowest)),
	'4|t', 'and none waited for long');

# A session that is ended in the midst of it lets the worker back.
my $client = $node->background_psql('uno');
is($client->query_safe("SELECT code FROM apikey_verify('$busy')"), 'VALID', 'a session verifies');
ok($node->poll_query_until('postgres', $workers, '1'), 'the worker is there');
my $locker = $node->background_psql('uno');
$locker->query_safe('BEGIN; LOCK pg_extension IN ACCESS EXCLUSIVE MODE');
my $updater = $node->background_psql('uno', on_error_stop => 0);
$updater->query_until(qr/^$/, "ALTER EXTENSION apikeys UPDATE;\n");
my $held = q(SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER EXTENSION%');
ok($node->poll_query_until('postgres', "SELECT ($held) IS NOT NULL AND ($workers) = 0"),
	'an update waits for a lock, and the worker is away');
$client->query_until(qr/^$/, "SELECT code FROM apikey_verify('$busy');\n");
ok($node->poll_query_until('postgres', $waiting, '1'), 'the session waits for a worker');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(($held))");
$locker->query_safe('ROLLBACK');
ok($node->poll_query_until('postgres', "SELECT ($workers) = 1 AND ($waiting) = 0"),
	'the update is ended, and the worker comes back');
is($client->query_safe('SELECT 1'), "VALID\n1", 'the session got its answer');
$client->quit;
$locker->quit;
$updater->{run}->finish;

$node->stop;
done_testing();
