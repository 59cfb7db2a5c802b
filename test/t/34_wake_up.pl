# Who waits for the worker is woken when it has done its part, whatever the wait
# has slept for meanwhile.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Who is not woken waits for longer than the test. (The alarm by which a wait for a
# lock looks for deadlocks would wake it, so that has to come before.)
my $node = new_server(
	'main',
	'deadlock_timeout' => '10ms',
	'apikeys.meter_timeout' => '600s',
	'apikeys.worker_idle_timeout' => '1s');
$node->start;
install($node);
$node->safe_psql('postgres',
	q(SELECT apikey_plan_create('Few', 10, 'year', plan_id => 'few')));
my (undef, $secret) = issue($node, 'postgres', q('few', plan_id => 'few'));
my (undef, $other) = issue($node, 'postgres', q('other', plan_id => 'few'));
my (undef, $off) = issue($node, 'postgres', q('off', enabled => false));

# Whoever reads from the disk takes back by itself that it waits: nothing is read
# from there any more.
is(verify($node, 'postgres', $other), 'VALID', 'another key is verified');
ok(flushed($node, 'postgres', 1), 'and its history written');
ok($node->poll_query_until('postgres',
		q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'apikeys worker')),
	'the worker leaves');

# The first request waits for a worker, then for the lock of a table from which
# it reads its count, then for a ceiling.
my $admin = $node->background_psql('postgres');
$admin->query_safe('BEGIN; LOCK TABLE apikeys.usage');
my $client = $node->background_psql('postgres');
$client->query_until(qr/sent/, qq(\\echo sent
SELECT code FROM apikey_verify('$secret');
));
my $verifies = q(FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() AND query ~ 'apikey_verify');
ok($node->poll_query_until('postgres', "SELECT wait_event_type = 'Lock' $verifies"),
	'a verification waits for a lock');

# The worker wakes who waits for it when it has written history, which is before
# it begins to write more.
foreach my $rows (2, 3)
{
	is(verify($node, 'postgres', $off), 'DISABLED', 'others go on');
	ok(flushed($node, 'postgres', $rows), 'and are in the history');
}
$admin->query_safe('COMMIT');
$admin->quit;
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 $verifies"),
	'it goes on as soon as it has its ceiling');
is($client->query_safe('SELECT 1'), "VALID\n1", 'and is admitted');
$client->quit;
$node->stop;
done_testing();
