# A clean stop loses nothing: counts after a restart are those before it.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# With such an interval only the flush at shutdown can have written anything.
my $node = new_server('main', 'apikeys.flush_interval' => '60s');
$node->start;
install($node);

$node->safe_psql(
	'postgres', q(
	SELECT apikey_plan_create('Large', 6400, 'year', plan_id => 'large');
	SELECT apikey_plan_create('Small', 5, 'year', plan_id => 'small');
	SELECT apikey_user_create('alice', plan_id => 'large')));

my ($large, $large_secret) =
  issue($node, 'postgres', q('large', plan_id => 'large'));
my ($small, $small_secret) =
  issue($node, 'postgres', q('small', plan_id => 'small'));
my ($free, $free_secret) = issue($node, 'postgres', q('free'));
my ($alice1, $alice1_secret) =
  issue($node, 'postgres', q('first', 'alice'));
my ($alice2, $alice2_secret) =
  issue($node, 'postgres', q('second', 'alice'));

my ($large_count, $free_count, $alice_count, $history) = (0, 0, 0, 0);
my $small_left = 5;

foreach my $mode ('fast', 'smart', 'fast')
{
	is(verify_times($node, 'postgres', $large_secret, 37),
		37, 'requests with a key of a large quota');
	is(verify_times($node, 'postgres', $free_secret, 11),
		11, 'requests without a limit');
	is(verify_times($node, 'postgres', $alice1_secret, 3),
		3, 'requests with one key of a user');
	is(verify_times($node, 'postgres', $alice2_secret, 4),
		4, 'requests with the other');
	$large_count += 37;
	$free_count += 11;
	$alice_count += 7;
	$history += 37 + 11 + 7;

	is(verify_times($node, 'postgres', $small_secret, 9),
		$small_left, 'a small quota');
	$history += 9;
	$small_left = 0;

	$node->stop($mode);
	$node->start;

	is(usage($node, 'postgres', $large),
		$large_count, "count after a restart ($mode)");
	is(usage($node, 'postgres', $free),
		$free_count, "count without a limit after a restart ($mode)");
	is(usage($node, 'postgres', $alice2),
		$alice_count, "count of a user after a restart ($mode)");
	is(usage($node, 'postgres', $small), 5,
		"count of a quota used up after a restart ($mode)");
	is( $node->safe_psql(
			'postgres', q(
			SELECT count(*), bool_and(charged = current_usage)
			  FROM apikeys.usage)),
		'4|t',
		"nothing was charged beyond the counts ($mode)");
	is( $node->safe_psql(
			'postgres', 'SELECT count(*) FROM apikeys.requests'),
		$history,
		"the history is complete after a restart ($mode)");
	is( $node->safe_psql(
			'postgres', q(
			SELECT count(*) FROM apikeys.incarnations
			 WHERE superseded_at IS NOT NULL)),
		'0',
		"no stop was taken for a crash ($mode)");
}

# The limit goes on from there.
is(verify_times($node, 'postgres', $large_secret, 6400),
	6400 - $large_count, 'exactly the rest of the quota is admitted');
is(verify($node, 'postgres', $large_secret),
	'USAGE_EXCEEDED', 'and no more');

# A stop while clients are verifying.
my $client = $node->background_psql('postgres', on_error_stop => 0);
my $before = usage($node, 'postgres', $free);
is($before, $free_count, 'count before the stop');
$client->query_until(
	qr/started/, qq(\\echo started
DO \$\$ BEGIN LOOP PERFORM apikey_verify('$free_secret'); COMMIT; END LOOP; END \$\$;
));
ok( $node->poll_query_until(
		'postgres',
		"SELECT current_usage > $before + 1000 FROM apikey_usage('$free')"),
	'a client is verifying');
$node->stop('fast');
eval { $client->quit };
$node->start;
ok(usage($node, 'postgres', $free) > $before + 1000,
	'its requests were counted');
is( $node->safe_psql(
		'postgres', qq(
		SELECT current_usage - (SELECT count(*) FROM apikeys.requests
		                         WHERE key_id = '$free')
		  FROM apikey_usage('$free'))),
	'0',
	'counts and history agree after a stop under load');

$node->stop;
done_testing();
