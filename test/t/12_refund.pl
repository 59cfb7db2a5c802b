# Ten thousand transactions that abort in every way, against a model: no unit
# is lost, none is given back twice.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 8;
my $times = 1250;
my $node = new_server(
	'main',
	'apikeys.meter_timeout' => '60s',
	'apikeys.history_wait_timeout' => '60s',
	'log_min_messages' => 'fatal');
$node->start;
install($node);
my $dir = PostgreSQL::Test::Utils::tempdir;

$node->safe_psql(
	'postgres', q(
	SELECT apikey_plan_create('Plan', 100000000, 'year', plan_id => 'plan');
	SELECT apikey_limit_set('rate', 10000000, '10000 days', plan_id => 'plan')));
my ($id, $secret) = issue($node, 'postgres', q('key', plan_id => 'plan'));

sub call
{
	my ($cost) = @_;
	return "SELECT code FROM apikey_verify('$secret', cost => $cost,"
	  . " on_abort => 'refund');\n";
}

# What each kind of transaction keeps of the costs a, b and c.
my @kinds = (
	[ 'commit', sub { 'BEGIN;' . call($_[0]) . 'COMMIT;' }, sub { $_[0] } ],
	[ 'rollback', sub { 'BEGIN;' . call($_[0]) . 'ROLLBACK;' }, sub { 0 } ],
	[
		'savepoint',
		sub {
			'BEGIN;' . call($_[0]) . 'SAVEPOINT s;' . call($_[1])
			  . 'ROLLBACK TO s;' . call($_[2]) . 'COMMIT;';
		},
		sub { $_[0] + $_[2] }
	],
	[
		'released',
		sub {
			'BEGIN;' . call($_[0]) . 'SAVEPOINT s;' . call($_[1])
			  . 'RELEASE s;' . call($_[2]) . 'ROLLBACK;';
		},
		sub { 0 }
	],
	[
		'nested',
		sub {
			'BEGIN;SAVEPOINT s;' . call($_[0]) . 'SAVEPOINT t;' . call($_[1])
			  . 'RELEASE t;ROLLBACK TO s;' . call($_[2]) . 'COMMIT;';
		},
		sub { $_[2] }
	],
	[
		'error',
		sub { 'BEGIN;' . call($_[0]) . 'SELECT 1/0;' . call($_[1]) . 'COMMIT;' },
		sub { 0 }
	],
	[
		'exception',
		sub {
			"DO \$\$ BEGIN PERFORM apikey_verify('$secret', cost => $_[0], on_abort => 'refund');"
			  . " BEGIN PERFORM apikey_verify('$secret', cost => $_[1], on_abort => 'refund');"
			  . ' RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END; END $$;';
		},
		sub { $_[0] }
	],
	[
		'cancelled',
		sub {
			'BEGIN;' . call($_[0])
			  . "SET LOCAL statement_timeout = '1ms';"
			  . 'SELECT count(*) FROM generate_series(1, 1000000000);COMMIT;';
		},
		sub { 0 }
	]);

srand(20260101);
my $kept = 0;
my @runs;
foreach my $client (1 .. $clients)
{
	my $script = '';
	foreach (1 .. $times)
	{
		my @costs = map { 1 + int(rand(1000)) } 1 .. 3;
		my $kind = $kinds[ int(rand(@kinds)) ];

		$script .= $kind->[1](@costs) . "\n";
		$kept += $kind->[2](@costs);
	}
	append_to_file("$dir/$client.sql", $script);
	push @runs, IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', "$dir/$client.sql" ],
		'<', \undef, '>', "$dir/$client.out", '2>', "$dir/$client.err");
}
$_->finish foreach @runs;
is(scalar(grep { -s "$dir/$_.out" } 1 .. $clients),
	$clients, 'all clients verified');
is(usage($node, 'postgres', $id), $kept,
	$clients * $times . ' transactions left what the committed ones consumed');
is( $node->safe_psql(
		'postgres', qq(
		SELECT (l ->> 'limit')::bigint - (l ->> 'remaining')::bigint
		  FROM apikey_usage('$id'), jsonb_array_elements(limits) l
		 WHERE l ->> 'name' = 'rate')),
	$kept, 'and so says the rate');

# A session that is terminated gives back; the worker waits for it meanwhile.
my $victim = $node->background_psql('postgres');
$victim->query_safe('BEGIN;' . call(1_000));
is(usage($node, 'postgres', $id), $kept + 1_000, 'a transaction is open');
is( $node->safe_psql(
		'postgres', q(
		SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
		 WHERE backend_type = 'apikeys worker')),
	't',
	'the worker is terminated meanwhile');
$node->safe_psql(
	'postgres', q(
	SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
	 WHERE state = 'idle in transaction'));
is(usage($node, 'postgres', $id), $kept, 'it is terminated and gives back');
is(verify($node, 'postgres', $secret), 'VALID', 'the next request');
ok( $node->poll_query_until(
		'postgres', qq(
		SELECT current_usage = $kept + 1 AND charged = $kept + 1
		  FROM apikeys.usage WHERE subject_id = '$id')),
	'the table holds the count');
eval { $victim->quit; };

$node->restart;
is(usage($node, 'postgres', $id), $kept + 1, 'and keeps it');

$node->stop;
done_testing();
