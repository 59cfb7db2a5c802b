# A request_id is charged once: from many clients at once, after the meter has
# forgotten it, and after a restart.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 16;
my $requests = 50;
my $node = new_server(
	'main',
	'max_connections' => $clients + 20,
	'apikeys.max_tracked_keys' => 1000,
	'apikeys.meter_timeout' => '60s',
	'apikeys.history_wait_timeout' => '60s');
$node->start;
install($node);
my $dir = PostgreSQL::Test::Utils::tempdir;
my ($id, $secret) = issue($node, 'postgres', q('once'));

sub call
{
	my ($request) = @_;
	return "SELECT code, repeated FROM apikey_verify('$secret', charges => '{\"request_id\": \"$request\"}');\n";
}

# Each client sends every request, each in another order.
my @scripts = map { "$dir/$_.sql" } 1 .. $clients;
foreach my $client (1 .. $clients)
{
	append_to_file($scripts[ $client - 1 ],
		join '', map { call('r' . ($_ * $client) % ($requests + 3)) } 1 .. $requests + 2);
}
race($node, 'retries', @scripts);
my %told = (t => 0, f => 0);
foreach my $script (@scripts)
{
	$told{$_}++ foreach slurp_file("$script.out") =~ /^VALID\|([tf])$/mg;
}
is($told{t} + $told{f}, $clients * ($requests + 2), 'all were let in');
is($told{f}, $requests + 2, 'each request was charged once');
is(usage($node, 'postgres', $id), $told{f}, 'and so says the meter');

# ----- Forgotten by the meter -----

ok( $node->poll_query_until(
		'postgres', "SELECT count(*) = $told{f} FROM apikeys.request_ids WHERE key_id = '$id'"),
	'they are durable');
my $evictions = q(SELECT value FROM apikeys.stats WHERE name = 'evictions');
my $before = $node->safe_psql('postgres', $evictions);
$node->safe_psql(
	'postgres', qq(
	SELECT count((apikey_verify('$secret', charges => jsonb_build_object('request_id', 'other' || n))).valid)
	  FROM generate_series(1, 3000) n));
cmp_ok($node->safe_psql('postgres', $evictions), '>', $before + 1000, 'others take their place');
like($node->safe_psql('postgres', call('r1')), qr/^VALID\|t$/, 'a retry is found all the same');

# ----- What may be given back stays in the meter: not all of it -----

my $hog = $node->background_psql('postgres');
my $taken = $hog->query_safe(qq(
	CREATE FUNCTION pg_temp.take() RETURNS text LANGUAGE plpgsql AS \$\$
	BEGIN
	    FOR n IN 1 .. 1100 LOOP
	        BEGIN
	            PERFORM apikey_verify('$secret', on_abort => 'refund',
	                charges => jsonb_build_object('request_id', 'kept' || n));
	        EXCEPTION WHEN configuration_limit_exceeded THEN
	            RETURN n - 1;
	        END;
	    END LOOP;
	    RETURN 'all';
	EXCEPTION WHEN insufficient_resources THEN
	    RETURN 'no room';
	END \$\$;
	BEGIN;
	SELECT pg_temp.take()));
is($taken, 500, 'one transaction takes half of the meter');
my ($other_id, $other) = issue($node, 'postgres', q('other'));
is(verify($node, 'postgres', $other), 'VALID', 'others find room meanwhile');
like($node->safe_psql('postgres', call('r5')), qr/^VALID\|t$/, 'with a request_id, too');
is($hog->query_safe('ROLLBACK; BEGIN; SELECT pg_temp.take()'), 500, 'what was given back is free again');
is($hog->query_safe('COMMIT; BEGIN; SELECT pg_temp.take()'), 1000, 'and what was kept, for which a retry takes nothing');
$hog->quit;

# ----- A restart, and a crash -----

$node->restart;
like($node->safe_psql('postgres', call('r2')), qr/^VALID\|t$/, 'and after a restart');
$node->stop('immediate');
ok(start_again($node), 'a crash');
like($node->safe_psql('postgres', call('r3')), qr/^VALID\|t$/, 'what was durable is not charged again');

# ----- Not remembered for ever -----

$node->safe_psql('postgres', "UPDATE apikeys.request_ids SET charged_at = charged_at - interval '26 hours'");
$node->append_conf('postgresql.conf', "apikeys.sweep_interval = '1s'");
$node->restart;
like($node->safe_psql('postgres', call('r4')), qr/^VALID\|f$/, 'what is old is another request');
ok( $node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM apikeys.request_ids'),
	'and its mark is removed');

$node->stop;
done_testing();
