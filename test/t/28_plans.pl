# What the worker does at each flush it does by index, whatever the planner
# thinks of so many keys: its time goes by what was used, not by what there is.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $keys = 20_000;

my $node = new_server(
	'main',
	'apikeys.flush_interval' => '100ms',
	'apikeys.last_used_interval' => '0',
	# A sweep may look at all keys; a new worker begins with one.
	'apikeys.sweep_interval' => '1d',
	'apikeys.worker_idle_timeout' => '1d');
$node->start;
install($node);
$node->safe_psql('postgres', qq(
	SELECT apikey_plan_create('Many', 1000, 'year', plan_id => 'many');
	CREATE TABLE secrets AS
	SELECT api_key FROM generate_series(1, $keys) n, LATERAL apikey_create('key ' || n, 'user ' || n % 100, 'many');
	VACUUM ANALYZE));

my (undef, $secret) = issue($node, 'postgres', q('one more'));
is(verify($node, 'postgres', $secret), 'VALID', 'a worker comes');

# A worker that has something to do reports what it did before.
sub statistics
{
	my ($what, $expected) = @_;
	return until_true(
		sub {
			verify($node, 'postgres', $secret);
			return $node->safe_psql('postgres', "SELECT $what FROM pg_stat_user_tables
				WHERE schemaname = 'apikeys' AND relname IN ('keys', 'usage')") =~ $expected;
		});
}

# Rows read by scans of whole tables.
sub read_whole
{
	return $node->safe_psql('postgres', q(
		SELECT string_agg(relname || '=' || seq_tup_read, ' ' ORDER BY relname)
		  FROM pg_stat_user_tables
		 WHERE schemaname = 'apikeys' AND relname IN ('keys', 'usage')));
}

ok(statistics("max(n_tup_upd) FILTER (WHERE relname = 'keys') > 0", qr/^t$/), 'which has its first look');
my $before = read_whole();

# Twice: rows are added, and changed.
foreach my $round (1, 2)
{
	is( $node->safe_psql('postgres',
			'SELECT count(*) FROM secrets, apikey_verify(api_key) v WHERE v.valid'),
		$keys, 'all keys are used');
	ok( statistics(
			qq(bool_and(n_tup_upd + CASE relname WHEN 'usage' THEN n_tup_ins ELSE 0 END >= $round * $keys)), qr/^t$/),
		'which is written');
	is(read_whole(), $before, 'and no table is read as a whole');
}

# That many in parts, so that each page has room for the new versions.
my $updates = $node->safe_psql('postgres', q(
	SELECT n_tup_upd || ' updates of ' || n_live_tup || ' keys, HOT ' || n_tup_hot_upd
	  FROM pg_stat_user_tables WHERE schemaname = 'apikeys' AND relname = 'keys'));
note $updates;
my ($all, $hot) = $updates =~ /^(\d+) .* (\d+)$/;
cmp_ok($hot, '>', 0.9 * $all, 'last_used_at makes no new entries in indexes');

ok( $node->poll_query_until('postgres', "SELECT value = 0 FROM apikeys.stats WHERE name = 'last_used_pending'"),
	'none is pending in the end');

# A stop waits for no part.
my $begun = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
is($node->safe_psql('postgres', 'SELECT count(*) FROM secrets, apikey_verify(api_key) v WHERE v.valid'),
	$keys, 'all keys are used');
$node->restart;
is($node->safe_psql('postgres', "SELECT count(*) FROM apikeys.keys WHERE last_used_at > '$begun'"),
	$keys, 'which a clean stop has written');

$node->stop;
done_testing();
