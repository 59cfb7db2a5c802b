# Several limits at once, from many clients: none is exceeded, all are charged
# together or none, and they outlive a restart.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 64;
my $times = 30;
my $node = new_server(
	'main',
	'max_connections' => $clients + 20,
	'apikeys.meter_timeout' => '60s',
	'apikeys.history_wait_timeout' => '60s');
$node->start;
install($node);
my $dir = PostgreSQL::Test::Utils::tempdir;

# Rates that do not fill while the test runs.
$node->safe_psql(
	'postgres', q(
	SELECT apikey_plan_create('Plan', 3000, 'year', plan_id => 'plan');
	SELECT apikey_limit_set('burst', 2000, '2000 days', plan_id => 'plan');
	SELECT apikey_user_create('alice', plan_id => 'plan');
	SELECT apikey_limit_set('tokens', 1500, '1500 days', user_id => 'alice')));
my ($id, $one) = issue($node, 'postgres', q('one', 'alice'));
my (undef, $two) = issue($node, 'postgres', q('two', 'alice'));
my ($own_id, $own) = issue($node, 'postgres', q('own', 'alice'));
$node->safe_psql('postgres',
	"SELECT apikey_limit_set('own', 50, '50 days', key_id => '$own_id')");

# What the limits of a key say: name=remaining, in order.
sub remaining
{
	my ($key) = @_;
	return $node->safe_psql(
		'postgres', qq(
		SELECT string_agg(format('%s=%s', l ->> 'name', l ->> 'remaining'), ' '
		                  ORDER BY l ->> 'name')
		  FROM apikey_usage('$key'), jsonb_array_elements(limits) l));
}

# Each client asks for other costs each time.
my @scripts = map { "$dir/$_.sql" } 1 .. $clients;
foreach my $client (1 .. $clients)
{
	my @secrets = ($one, $two, $own);

	foreach my $n (1 .. $times)
	{
		my $secret = $secrets[ ($client + $n) % 3 ];
		my $cost = 1 + ($client * 7 + $n) % 3;
		my $tokens = ($client + $n * 5) % 4;
		append_to_file($scripts[ $client - 1 ],
			"SELECT code, $cost, $tokens, name FROM apikey_verify('$secret',"
			  . " cost => $cost, charges => '{\"tokens\": $tokens}');\n");
	}
}
race($node, 'three limits', @scripts);

my %told = (VALID => 0, RATE_LIMITED => 0, cost => 0, tokens => 0, own => 0);
foreach my $script (@scripts)
{
	foreach (split /\n/, slurp_file("$script.out"))
	{
		my ($code, $cost, $tokens, $name) = split /\|/;

		next if !defined $cost;
		$told{$code}++;
		next if $code ne 'VALID';
		$told{cost} += $cost;
		$told{tokens} += $tokens;
		$told{own} += $cost if $name eq 'own';
	}
}
is($told{VALID} + $told{RATE_LIMITED}, $clients * $times, 'each had an answer');
cmp_ok($told{cost}, '<=', 2000, "the rate of the plan holds ($told{cost})");
cmp_ok($told{tokens}, '<=', 1500, "the rate of the user holds ($told{tokens})");
cmp_ok($told{own}, '<=', 50, "the rate of the key holds ($told{own})");
is( remaining($own_id),
	sprintf(
		'burst=%d own=%d quota=%d tokens=%d',
		2000 - $told{cost}, 50 - $told{own},
		3000 - $told{cost}, 1500 - $told{tokens}),
	'what was refused was charged to none of them');

# The rest goes to the last request: exactly the limit.
my $rest = $node->safe_psql(
	'postgres', qq(
	SELECT count(*) FILTER (WHERE
	       (apikey_verify('$one', charges => '{"tokens": 0}')).valid)
	  FROM generate_series(1, 2100)));
is($told{cost} + $rest, 2000, 'in the end exactly the limit is admitted');
my $after = remaining($own_id);
like($after, qr/^burst=0 .* quota=1000 /, 'and the limits say so');

# ----- They outlive a restart -----

$node->restart;
is(remaining($own_id), $after, 'a restart keeps the rates');
is(verify($node, 'postgres', $one), 'RATE_LIMITED', 'which goes on to be so');
is( $node->safe_psql('postgres', 'SELECT count(*) FROM apikeys.rate_marks'),
	'0', 'their marks are taken back');

# Marks that a dump brings while the meter is open, of before, give nothing back,
# and do not keep it from closing.
$node->safe_psql('postgres', q(
	SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
	 WHERE backend_type = 'apikeys worker'));
ok($node->poll_query_until('postgres', 'SELECT count(*) > 0 FROM apikeys.rate_marks'),
	'the worker has left the marks behind');
$node->safe_psql('postgres', 'CREATE TABLE marks AS SELECT * FROM apikeys.rate_marks');
is(verify($node, 'postgres', $one), 'RATE_LIMITED', 'another one has taken them');
$node->safe_psql('postgres', q(
	INSERT INTO apikeys.rate_marks SELECT subject_id, is_user, name_hash, 0 FROM marks));
$node->restart;
is(remaining($own_id), $after, 'and others that are loaded meanwhile do not count');
$node->safe_psql('postgres', 'DROP TABLE marks');

# ----- After a crash a rate is used up, unless it came later -----


$node->stop('immediate');
$node->start;
like(remaining($id), qr/^burst=0 quota=\d+ tokens=0$/,
	'a crash leaves nothing of what may have been used');
ok( $node->poll_query_until(
		'postgres', q(
		SELECT count(*) = 0 FROM apikeys.incarnations
		 WHERE closed_at IS NULL AND superseded_at IS NULL)),
	'the crash is settled');
my ($later_id, $later) = issue($node, 'postgres', q('later', plan_id => 'plan'));
is(remaining($later_id), 'burst=2000 quota=3000', 'a key made later is spared');
is(verify($node, 'postgres', $later), 'VALID', 'and works');

$node->stop;
done_testing();
