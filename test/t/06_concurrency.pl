# A quota of N admits exactly N of however many clients, by their own tally.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 64;
my $node = new_server(
	'main',
	'max_connections' => $clients + 20,

	# Where two cores serve 64 clients, a wait is not yet a fault.
	'apikeys.meter_timeout' => '60s',
	'apikeys.history_wait_timeout' => '60s');
$node->start;
install($node);
my $dir = PostgreSQL::Test::Utils::tempdir;
my $history = 0;

# Lets all clients verify at once, so many times each. Every other client
# rolls each verification back, which must change nothing.
sub run_clients
{
	my ($name, $times, @secrets) = @_;
	my @scripts = map { "$dir/$name.$_.sql" } 1 .. $clients;

	foreach my $client (1 .. $clients)
	{
		my $secret = $secrets[ $client % @secrets ];
		my $call = "SELECT code FROM apikey_verify('$secret');\n";
		$call = "BEGIN;\n${call}ROLLBACK;\n" if $client % 2;
		append_to_file($scripts[ $client - 1 ], $call x $times);
	}
	race($node, $name, @scripts);
	$history += $clients * $times;
	return codes(map { "$_.out" } @scripts);
}

foreach my $quota ([ 1, 10 ], [ 10, 10 ], [ 10_000, 200 ])
{
	my ($limit, $times) = @$quota;
	my $name = "quota of $limit";
	$node->safe_psql('postgres',
		"SELECT apikey_plan_create('Plan', $limit, 'year', plan_id => '$limit')");
	my ($id, $secret) = issue($node, 'postgres', "'key', plan_id => '$limit'");

	is_deeply(
		run_clients("key$limit", $times, $secret),
		{ VALID => $limit, USAGE_EXCEEDED => $clients * $times - $limit },
		"the clients were told so ($name)");
	is( $node->safe_psql(
			'postgres',
			"SELECT current_usage, remaining FROM apikey_usage('$id')"),
		"$limit|0",
		"the meter says so ($name)");
	ok(flushed($node, 'postgres', $history), "the history is complete ($name)");
	is( $node->safe_psql(
			'postgres', qq(
			SELECT code, status, count(*) FROM apikeys.requests
			 WHERE key_id = '$id' GROUP BY 1, 2 ORDER BY 1)),
		'USAGE_EXCEEDED|denied|'
		  . ($clients * $times - $limit)
		  . "\nVALID|allowed|$limit",
		"the history says so ($name)");
	ok( $node->poll_query_until(
			'postgres', qq(
			SELECT current_usage = $limit AND charged = $limit
			  FROM apikeys.usage WHERE subject_id = '$id')),
		"the table says so ($name)");
}

# The same with a quota that two keys of a user share.
$node->safe_psql(
	'postgres', q(
	SELECT apikey_plan_create('Plan', 100, 'year', plan_id => 'shared');
	SELECT apikey_user_create('alice', plan_id => 'shared')));
my (undef, $one) = issue($node, 'postgres', q('one', 'alice'));
my (undef, $two) = issue($node, 'postgres', q('two', 'alice'));
is_deeply(
	run_clients('shared', 10, $one, $one, $two, $two),
	{ VALID => 100, USAGE_EXCEEDED => $clients * 10 - 100 },
	'a quota shared by two keys');

# No request cost more than it did, and each was told what it was.
my ($id, $secret) = issue($node, 'postgres', q('free'));
is_deeply(
	run_clients('free', 20, $secret),
	{ VALID => $clients * 20 },
	'requests without a limit');
is(usage($node, 'postgres', $id), $clients * 20, 'are all counted');
ok(flushed($node, 'postgres', $history), 'and remembered');

$node->stop;
done_testing();
