# After a crash, what is durable is never less than what was admitted, and
# hardly more; what is billed is never more; a revoke that was acknowledged
# holds.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Processes die here, not the machine: what the kernel has been given stays.
my $node = new_server(
	'main',
	'restart_after_crash' => 'on',
	'apikeys.flush_interval' => '50ms');
$node->start;
install($node);
my $dir = PostgreSQL::Test::Utils::tempdir;
my $clients = 4;

# Clients that verify one key again and again, at a pace, and write down what
# they are told.
sub start_clients
{
	my ($secret, $round, $pause) = @_;
	my @runs;
	append_to_file("$dir/script.$round",
		"SELECT code FROM apikey_verify('$secret');\n"
		  . "SELECT FROM pg_sleep($pause);\n") foreach 1 .. 1000;
	foreach my $client (1 .. $clients)
	{
		push @runs, IPC::Run::start(
			[
				'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d',
				$node->connstr('postgres'), '-f', "$dir/script.$round"
			],
			'<', \undef,
			'>', "$dir/out.$round.$client",
			'2>', "$dir/err.$round.$client");
	}
	return @runs;
}

sub told
{
	my ($round) = @_;
	return codes(map { "$dir/out.$round.$_" } 1 .. $clients)->{VALID} // 0;
}

# Kills a server that is verifying and looks at what it remembers.
sub crash
{
	my ($what, $limit, $kill) = @_;
	my $name = "$what, limit of $limit";
	my $round = "$what.$limit";
	$node->safe_psql('postgres',
		"SELECT apikey_plan_create('Plan', $limit, 'year', plan_id => '$round')");
	my ($id, $secret) =
	  issue($node, 'postgres', "'key', plan_id => '$round'");

	# A third of the quota, and then in the middle of it: slowly enough that
	# some is left when it is known whom to kill.
	my @runs = start_clients($secret, $round,
		$limit > 100 ? 0.02 : $limit > 12 ? 0.3 : 3);
	ok(until_true(sub { told($round) >= $limit / 3 }),
		"clients verify ($name)");
	$kill->();
	eval { $_->finish } foreach @runs;
	my $told = told($round);
	cmp_ok($told, '<', $limit, "the quota is not used up yet ($name)");
	$kill->('again');

	my $billed = usage($node, 'postgres', $id);
	my $admitted = verify_times($node, 'postgres', $secret, 2 * $limit);
	my $total = $told + $admitted;
	note "told $told, billed $billed, then admitted $admitted";

	# A client may have been admitted when the server died under the answer.
	my $step = $limit < 64 ? 1 : $limit / 64;
	cmp_ok($total, '<=', $limit, "no more than the limit is admitted ($name)");
	cmp_ok($total + $step + $clients,
		'>=', $limit, "and not much less ($name)");
	cmp_ok($billed, '<=', $told + $clients,
		"nobody is billed for more than was admitted ($name)");
	is(usage($node, 'postgres', $id), $billed + $admitted,
		"billing goes on from there ($name)");
	is(verify($node, 'postgres', $secret),
		'USAGE_EXCEEDED', "the quota is used up then ($name)");
	return;
}

sub kill_postmaster
{
	my ($again) = @_;
	return ok(start_again($node), 'the server starts again') if $again;
	return $node->kill9;
}

# One backend that dies takes shared memory with it.
sub kill_backend
{
	my ($again) = @_;
	return ok($node->poll_query_until('postgres', 'SELECT true'),
		'the server is back')
	  if $again;
	my $pid = $node->safe_psql('postgres',
		q(SELECT pid FROM pg_stat_activity
		   WHERE query ~ '^SELECT (code|FROM)' LIMIT 1));
	return kill 'KILL', $pid;
}

sub kill_worker
{
	my ($again) = @_;
	return kill_backend($again) if $again;
	my $pid = $node->safe_psql('postgres',
		q(SELECT pid FROM pg_stat_activity
		   WHERE backend_type = 'apikeys worker'));
	return kill 'KILL', $pid;
}

crash('postmaster', $_, \&kill_postmaster) foreach (12, 64, 1000);
crash('backend', $_, \&kill_backend) foreach (12, 1000);
crash('worker', 1000, \&kill_worker);

# A quota that was used up stays used up, whatever was written.
$node->append_conf('postgresql.conf', q(apikeys.flush_interval = '60s'));
$node->reload;
$node->safe_psql('postgres',
	q(SELECT id FROM apikey_plan_create('Plan', 128, 'year', plan_id => 'up')));
my ($up, $up_secret) = issue($node, 'postgres', q('up', plan_id => 'up'));
is(verify_times($node, 'postgres', $up_secret, 200), 128, 'a quota');
$node->kill9;
ok(start_again($node), 'the server starts again');
is(verify_times($node, 'postgres', $up_secret, 200),
	0, 'is still used up after a crash');
cmp_ok(usage($node, 'postgres', $up),
	'<=', 128, 'and nobody is billed for more');

# The worker's first pass writes whatever it finds; the next one is far off.
ok( $node->poll_query_until(
		'postgres', q(
		SELECT count(*) = 1 FROM pg_stat_activity
		 WHERE backend_type = 'apikeys worker' AND state = 'idle')),
	'a worker is there, and has had its first look');

# A first touch right before the crash: no row tells of it yet.
$node->safe_psql('postgres',
	q(SELECT apikey_plan_create('Plan', 6400, 'year', plan_id => 'wide')));
my ($first, $first_secret) =
  issue($node, 'postgres', q('first', plan_id => 'wide'));
is(verify_times($node, 'postgres', $first_secret, 2), 2, 'the first requests');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM apikeys.usage WHERE subject_id = '$first'"),
	'0',
	'of which no row tells');
$node->kill9;
ok(start_again($node), 'the server starts again');
my $rest = verify_times($node, 'postgres', $first_secret, 6500);
cmp_ok($rest, '<=', 6398, 'are allowed for');
cmp_ok($rest, '>=', 6400 - 100, 'at the cost of one step');
is(usage($node, 'postgres', $first), $rest, 'which nobody is billed for');

# A key made after the crash has its whole quota.
my ($later, $later_secret) =
  issue($node, 'postgres', q('later', plan_id => 'wide'));
is(verify_times($node, 'postgres', $later_secret, 6500),
	6400, 'a key made after the crash pays nothing for it');

# A limit that is lowered right before the crash: what was admitted without a row
# by the higher one is more than a missing row allows for by the lower one.
ok( $node->poll_query_until(
		'postgres', q(
		SELECT count(*) = 1 FROM pg_stat_activity
		 WHERE backend_type = 'apikeys worker' AND state = 'idle')),
	'a worker has had its first look');
$node->safe_psql('postgres',
	q(SELECT apikey_plan_create('Plan', 64000, 'year', plan_id => 'lowered')));
my (undef, $lowered) = issue($node, 'postgres', q('lowered', plan_id => 'lowered'));
is(verify($node, 'postgres', $lowered), 'VALID', 'a request by a high limit');
$node->safe_psql('postgres',
	q(SELECT apikey_plan_update('lowered', '{"max_requests": 640}')));
is(verify_times($node, 'postgres', $lowered, 600), 600, 'more by a lower one');
$node->kill9;
ok(start_again($node), 'the server starts again');
$rest = verify_times($node, 'postgres', $lowered, 700);
cmp_ok($rest, '<=', 39, 'together not more than the lower limit');
cmp_ok($rest, '>=', 39 - 10, 'at the cost of one step');

# So is what was admitted without a limit, though its row is behind.
$node->safe_psql('postgres',
	q(SELECT apikey_plan_create('Plan', NULL, 'year', plan_id => 'limited')));
my ($limited_id, $limited) = issue($node, 'postgres', q('limited', plan_id => 'limited'));
is(verify_times($node, 'postgres', $limited, 500), 500, 'requests without a limit');
$node->safe_psql('postgres',
	q(SELECT apikey_plan_update('limited', '{"max_requests": 100}')));
is(verify($node, 'postgres', $limited), 'USAGE_EXCEEDED', 'a limit below what was used');
my $refused = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
ok( $node->poll_query_until(
		'postgres', "SELECT charged = 500 FROM apikeys.usage WHERE subject_id = '$limited_id'"),
	'has it written');
is( $node->safe_psql(
		'postgres', "SELECT updated_at < timestamptz '$refused' + interval '15 s' FROM apikeys.usage WHERE subject_id = '$limited_id'"),
	't', 'long before the interval is over');
$node->kill9;
ok(start_again($node), 'the server starts again');
is(verify_times($node, 'postgres', $limited, 200), 0, 'and holds over a crash');

# ----- An acknowledged revoke -----

# Nothing but the statement itself makes its commit durable: the WAL writer
# and the worker sleep. A control row, written the same way, tells that
# without care a commit is lost indeed.
$node->append_conf(
	'postgresql.conf', q(
wal_writer_delay = '10s'
wal_writer_flush_after = '1GB'
autovacuum = off
bgwriter_delay = '10s'));
$node->restart;
$node->safe_psql('postgres', 'CREATE TABLE control (round int)');

my %revoke = (
	delete => q(DELETE FROM apikeys.keys WHERE id = '%s'),
	disable => q(UPDATE apikeys.keys SET enabled = false WHERE id = '%s'),
	function => q(SELECT apikey_delete('%s')),
	regenerate => q(SELECT id FROM apikey_regenerate('%s')));
my $lost = 0;
my $round = 0;
foreach my $kind (sort keys %revoke)
{
	$round++;
	my ($id, $secret) = issue($node, 'postgres', q('key'));
	is(verify($node, 'postgres', $secret), 'VALID', "a key to $kind");
	$node->safe_psql('postgres', 'CHECKPOINT');

	my $session = $node->background_psql('postgres');
	$session->query_safe('SET synchronous_commit = off');
	$session->query_safe(sprintf $revoke{$kind}, $id);
	$session->query_safe("INSERT INTO control VALUES ($round)");
	$node->kill9;
	eval { $session->quit };
	ok(start_again($node), 'the server starts again');

	isnt(verify($node, 'postgres', $secret),
		'VALID', "is refused after a crash ($kind)");
	$lost++
	  unless $node->safe_psql('postgres',
		"SELECT count(*) FROM control WHERE round = $round");
}
cmp_ok($lost, '>', 0, 'a commit without such care was lost');

$node->stop;
done_testing();
