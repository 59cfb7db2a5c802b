# What a physical standby answers, and what a promotion keeps: all that was
# acknowledged, if the standby is a synchronous one. If it is not, what it had
# not received is lost: that is measured.
#
# APIKEYS_FAILOVERS is how often a synchronous standby and how often an
# asynchronous one is promoted: "20 20" in the long form. The figures go to
# APIKEYS_FIGURES, if it is set.

use strict;
use warnings FATAL => 'all';

use File::Path;
use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use LedgerTest;
use List::Util qw(max);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my ($synchronous, $asynchronous) = split ' ', $ENV{APIKEYS_FAILOVERS} // '2 1';

my $primary = new_server(
	'server0',
	'wal_level' => 'replica',
	'max_wal_senders' => '5',
	'hot_standby' => 'on',
	'max_connections' => '25',
	'apikeys.flush_interval' => '100ms',
	'autovacuum' => 'off');
$primary->start;
install($primary);

# A standby of the primary, which waits for it from now on, if it shall.
my $servers = 0;

sub new_standby
{
	my ($is_synchronous) = @_;
	my $name = 'server' . ++$servers;
	$primary->backup($name);
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($primary, $name, has_streaming => 1);
	$standby->append_conf('postgresql.conf', q(synchronous_standby_names = ''));
	$standby->start;
	File::Path::rmtree($primary->backup_dir . "/$name");
	$primary->append_conf('postgresql.conf',
		"synchronous_standby_names = '" . ($is_synchronous ? $name : '') . "'");
	$primary->reload;
	my $state = $is_synchronous ? 'sync' : 'async';
	ok( $primary->poll_query_until(
			'postgres', "SELECT sync_state = '$state' FROM pg_stat_replication"),
		"a standby follows ($state)");
	return $standby;
}

# ----- What a standby answers -----

$primary->safe_psql('postgres',
	q(SELECT apikey_plan_create('Few', 10, 'year', plan_id => 'few')));
my ($free_id, $free) = issue($primary, 'postgres', q('free'));
my ($few_id, $few) = issue($primary, 'postgres', q('few', plan_id => 'few'));
my ($paid_id, $paid) = issue($primary, 'postgres', q('paid'));
$primary->safe_psql('postgres', "SELECT apikey_credits('$paid_id', 'set', 10)");
my ($off_id, $off) = issue($primary, 'postgres', q('off'));
$primary->safe_psql('postgres',
	"UPDATE apikeys.keys SET enabled = false WHERE id = '$off_id'");

my $standby = new_standby(1);

# Waits until the standby has replayed what was committed.
sub caught_up
{
	return $primary->wait_for_catchup($standby, 'replay', $primary->lsn('flush'));
}

caught_up();
is(verify($standby, 'postgres', $free), 'VALID', 'a standby verifies a key without a limit');
is(verify($standby, 'postgres', $off), 'DISABLED', 'and refuses one that is disabled');
is(verify($standby, 'postgres', 'junk'), 'MALFORMED', 'and what is no key');
foreach my $secret ($few, $paid)
{
	my ($ret, $stdout, $stderr) = $standby->psql(
		'postgres', "\\set VERBOSITY verbose\nSELECT code FROM apikey_verify('$secret')");
	isnt($ret, 0, 'a limit cannot be decided there');
	is($stdout, '', 'so nothing is admitted');
	like($stderr, qr/25006: cannot meter a limited key during recovery/, 'and the error says why');
}
is( $standby->safe_psql('postgres',
		q(SELECT value FROM apikeys.stats WHERE name = 'history_unrecorded')),
	'2', 'what it cannot record is counted');
is( $standby->safe_psql('postgres',
		q(SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ '^apikeys')),
	'0', 'neither launcher nor worker run there');

# ----- How fresh that is -----

# A session that has the key in its cache learns of the change with the replay.
my %change = (
	delete => q(SELECT apikey_delete('%s')),
	disable => q(UPDATE apikeys.keys SET enabled = false WHERE id = '%s'),
	regenerate => q(SELECT id FROM apikey_regenerate('%s')),
	limit => q(UPDATE apikeys.keys SET plan_id = 'few' WHERE id = '%s'));
my $session = $standby->background_psql('postgres', on_error_stop => 0);
my $admin = $primary->background_psql('postgres');
my %stale = (on => 0, remote_apply => 0);
my $slowest = 0;
my $changes = 0;
my $times = $ENV{APIKEYS_FIGURES} ? 5 : 2;
foreach my $wait (sort keys %stale)
{
	$admin->query_safe("SET synchronous_commit = $wait");
	foreach my $kind (('delete', 'disable', 'regenerate', 'limit') x $times)
	{
		my ($id, $secret) = issue($primary, 'postgres', q('key'));
		caught_up();
		my $question = "SELECT code FROM apikey_verify('$secret')";
		$session->query($question) eq 'VALID' or die 'the key is not good';

		$admin->query_safe(sprintf $change{$kind}, $id);
		my $began = time;
		my $first = $session->query($question);
		$stale{$wait}++ if $first eq 'VALID';
		caught_up() if $first eq 'VALID';
		my $after = $session->query($question);
		$slowest = max($slowest, time - $began) if $first eq 'VALID';
		isnt($after, 'VALID', "what was replayed holds ($kind)");
		$changes++;
	}
}
is($stale{remote_apply}, 0, 'with remote_apply it holds once it is acknowledged');
note "stale with synchronous_commit = on: $stale{on}, at most $slowest s";
$session->quit;
$admin->quit;

# ----- Promotions -----

my $slowest_answer = 0;

# Kills the primary so many microseconds after its standby got the last of it.
sub cut_off_and_kill
{
	my ($microseconds) = @_;
	my $sender = $primary->safe_psql('postgres', 'SELECT pid FROM pg_stat_replication');
	my @others = split /\n/, $primary->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE pid NOT IN (pg_backend_pid(), $sender)");
	kill 'STOP', $sender or die "walsender: $!";
	usleep($microseconds);
	$primary->kill9;

	# It may hold a lock, and nobody is there any more to end who waits for it.
	kill 'KILL', $sender, @others;
	return;
}

# The primary ends under load, of a sudden or as in a planned change; its
# standby takes its place.
sub fail_over
{
	my ($ledger, $name, $is_planned) = @_;

	# All keys are in use over the promotion, this one is not.
	my ($id, $secret) = issue($primary, 'postgres', q('idle', plan_id => 'few'));
	$ledger->begin($primary);
	usleep(rand 500_000);
	$is_planned
	  ? $primary->stop('fast')
	  : cut_off_and_kill($ledger->{forgetful} ? 0 : 50_000);
	$ledger->end;

	my $began = time;
	$standby->promote;
	is(verify($standby, 'postgres', $secret), 'VALID', "a limited key passes ($name)");
	$slowest_answer = max($slowest_answer, time - $began);
	ok( $standby->poll_query_until(
			'postgres', q(
			SELECT count(DISTINCT backend_type) = 2 FROM pg_stat_activity
			 WHERE backend_type IN ('apikeys launcher', 'apikeys worker'))),
		"launcher and worker have started by themselves ($name)");

	$ledger->settle($standby, $name, 1);
	$primary->teardown_node;
	$primary->clean_node;
	$primary = $standby;
	return;
}

my $ledger = LedgerTest->new;
foreach my $n (1 .. $synchronous)
{
	$standby = new_standby(1) if $n > 1;
	my $is_planned = $n % 4 == 0;
	fail_over($ledger, "synchronous no. $n" . ($is_planned ? ', planned' : ''), $is_planned);
}
$ledger->check('promotion');

# What a standby that nobody waits for has not received is lost: how much that
# is in normal running.
my $plain = LedgerTest->new(forgetful => 1);
foreach my $n (1 .. $asynchronous)
{
	$standby = new_standby(0);
	fail_over($plain, "asynchronous no. $n", 0);
}
cmp_ok($plain->{figure}{lost}, '<=', 1, 'a quota loses a step at most there too');
note join ', ', map { "$_ $plain->{figure}{$_}" } sort keys %{ $plain->{figure} };

# The most that can be lost: the standby was cut off, and nobody noticed.
$standby = new_standby(0);
my ($revoked_id, $revoked) = issue($primary, 'postgres', q('revoked'));
my ($cut_id, $cut) = issue($primary, 'postgres', q('cut', plan_id => 'few'));
is(verify_times($primary, 'postgres', $cut, 4), 4, 'a part of a quota');
caught_up();
$standby->adjust_conf('postgresql.conf', 'primary_conninfo', "''");
$standby->reload;
ok( $primary->poll_query_until(
		'postgres', 'SELECT count(*) = 0 FROM pg_stat_replication'),
	'the standby is cut off');
is(verify_times($primary, 'postgres', $cut, 10), 6, 'the rest of it');
$primary->safe_psql('postgres', "SELECT apikey_delete('$revoked_id')");
$primary->kill9;
$standby->promote;
my $again = verify_times($standby, 'postgres', $cut, 20);
cmp_ok($again, '>', 0, 'what was admitted since is forgotten');
cmp_ok($again, '<=', 6, 'and nothing but that');
is(verify($standby, 'postgres', $revoked), 'VALID', 'and so are revocations');
$primary->teardown_node;
$primary = $standby;

if ($ENV{APIKEYS_FIGURES})
{
	my $figure = $ledger->{figure};
	append_to_file(
		$ENV{APIKEYS_FIGURES},
		sprintf "3|synchronous standby promoted under load %d times;"
		  . " %d answers, %d creations and %d revocations acknowledged"
		  . "|admitted above a limit %d; lost at most %.3f steps a key a promotion (limit 20: %d requests);"
		  . " billed beyond what was told at most %d (answers under way: up to %d);"
		  . " creations lost %d, revocations forgotten %d;"
		  . " first metered answer at most %.1f s after the promotion began\n",
		@$figure{
			'rounds', 'told', 'created', 'revoked', 'above', 'lost',
			'lost_small', 'overbilled'
		},
		$ledger->{verifiers}, @$figure{ 'created_lost', 'revoked_lost' },
		$slowest_answer);
	$figure = $plain->{figure};
	append_to_file(
		$ENV{APIKEYS_FIGURES},
		sprintf "3|asynchronous standby promoted under load %d times;"
		  . " %d answers, %d creations and %d revocations acknowledged"
		  . "|admitted above limits %d in all;"
		  . " creations lost %d, revocations forgotten %d\n",
		@$figure{
			'rounds', 'told', 'created', 'revoked', 'above', 'created_lost',
			'revoked_lost'
		});
	append_to_file(
		$ENV{APIKEYS_FIGURES},
		sprintf "3|%d changes of keys asked for at once on a standby"
		  . "|still accepted after the replay 0, after remote_apply %d,"
		  . " after on %d (for %.3f s at most)\n",
		$changes, @stale{ 'remote_apply', 'on' }, $slowest);
}

$primary->stop;
done_testing();
