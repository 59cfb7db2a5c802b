# DROP and CREATE EXTENSION, again and again, while the worker is there: quick,
# with no count of the one before, and no process left behind.
#
# APIKEYS_REINSTALLS is how often, 100 in the long form. The figures go to
# APIKEYS_FIGURES, if it is set.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use List::Util qw(max);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $times = $ENV{APIKEYS_REINSTALLS} // 5;
my $node = new_server('main');
$node->start;
install($node);

# The same id and secret each time: a count that stayed would be found again.
my ($id, $secret) = issue($node, 'postgres', q('key'));
my $columns = join ', ', qw(id name plan_id start digest);
my $row = $node->safe_psql('postgres',
	"SELECT format('(%L, %L, %L, %L, %L)', id, name, 'plan', start, digest) FROM apikeys.keys");
my $worker = q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'apikeys worker');

# Through one session, so that what is timed is the statement.
my $session = $node->background_psql('postgres');
$session->query_safe('SET client_min_messages = warning');
my (%slowest, $stale, $workers);
$stale = $workers = 0;
%slowest = (DROP => 0, CREATE => 0);

sub timed
{
	my ($what, $statement) = @_;
	my $began = time;
	$session->query_safe($statement);
	$slowest{$what} = max($slowest{$what}, time - $began);
	return;
}

foreach my $n (1 .. $times)
{
	timed('DROP', 'DROP EXTENSION apikeys');
	timed('CREATE', 'CREATE EXTENSION apikeys');
	$session->query_safe(
		qq(
		SELECT plan_id FROM (SELECT id AS plan_id FROM apikey_plan_create('Plan', 100, 'year', plan_id => 'plan')) p;
		INSERT INTO apikeys.apis (id) VALUES ('default');
		INSERT INTO apikeys.keys ($columns) VALUES $row;));
	my $admitted = $session->query_safe(
		"SELECT count(*) FILTER (WHERE (apikey_verify('$secret')).valid) FROM generate_series(1, 150)");
	my $usage = $session->query_safe("SELECT current_usage FROM apikey_usage('$id')");
	$stale++ unless $admitted == 100 && $usage == 100;

	# The worker of this installation is there; that of the one before may be
	# on its way out, no more.
	ok($node->poll_query_until('postgres', "SELECT ($worker) = 1"), "one worker (no. $n)")
	  or $workers++;
}
timed('DROP', 'DROP EXTENSION apikeys');
ok($node->poll_query_until('postgres', "SELECT ($worker) = 0"),
	'no worker is left when the extension is gone')
  or $workers++;
my $slots = $node->safe_psql('postgres',
	q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'apikeys%'));
is($slots, '1', 'nothing but the launcher');

is($stale, 0, 'each installation starts from nothing');
cmp_ok($slowest{$_}, '<', 1, "$_ EXTENSION takes less than a second") foreach sort keys %slowest;
if ($ENV{APIKEYS_FIGURES})
{
	append_to_file(
		$ENV{APIKEYS_FIGURES},
		sprintf "7|DROP and CREATE EXTENSION with the worker active, %d times"
		  . "|slowest DROP %.3f s, CREATE %.3f s; orphan workers %d, stale counts %d\n",
		$times, @slowest{ 'DROP', 'CREATE' }, $workers, $stale);
}
$session->quit;

# ----- With a single slot, all of this goes on -----

$node->append_conf('postgresql.conf', 'apikeys.max_databases = 1');
$node->append_conf('postgresql.conf', 'apikeys.sweep_interval = 1h');
$node->restart;
my $again = q(
	BEGIN;
	DROP EXTENSION IF EXISTS apikeys CASCADE;
	CREATE EXTENSION apikeys;
	COMMIT;
	SELECT code FROM apikey_verify((SELECT api_key FROM apikey_create('key',
		plan_id => (SELECT id FROM apikey_plan_create('Plan', 100, 'year'))))););

# Settings of the worker, from now on.
sub set_worker
{
	my ($idle, $interval) = @_;
	$node->safe_psql('postgres', $_)
	  foreach "ALTER SYSTEM SET apikeys.worker_idle_timeout = $idle",
	  "ALTER SYSTEM SET apikeys.flush_interval = $interval";
	$node->reload;
	return;
}

# The worker of the one before is there, and sleeps; then it has left.
foreach my $idle (600, 1)
{
	set_worker($idle, $idle > 1 ? q('60s') : q('100ms'));
	foreach my $n (1, 2)
	{
		my ($ret, $out, $err) = $node->psql('postgres', "SET client_min_messages = warning; $again");
		is("$out$err", 'VALID', "a new installation in the only slot (idle timeout $idle, no. $n)");
		my $left = $idle > 1 ? 1 : 0;
		ok($node->poll_query_until('postgres', "SELECT ($worker) = $left"),
			"the worker is where it shall be");
	}
}

# In another database the first try may come too early. It calls for the next.
set_worker(600, q('60s'));
is($node->safe_psql('postgres', $again), 'VALID', 'it is used again');
$node->safe_psql('postgres', 'DROP EXTENSION apikeys');
$node->safe_psql('postgres', 'CREATE DATABASE other');
install($node, 'other');
ok( until_true(
		sub {
			my ($ret, $out) = $node->psql('other', $again);
			return $ret == 0 && $out eq 'VALID';
		}),
	'another database gets the place');
isnt($node->psql('postgres', "CREATE EXTENSION apikeys; SELECT count(*) FROM apikeys.live_usage"),
	0, 'while it has it, nobody else does');

$node->stop;
done_testing();
