# What pg_dump takes, a restore brings back: every row as it was, with no
# trigger changing one, and no secret in the dump.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('main', 'apikeys.last_used_interval' => '1s');
$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE source');
install($node, 'source');

# ----- Rows of every kind -----

$node->safe_psql(
	'source', q(
	CREATE ROLE web;
	SELECT apikey_plan_create('Plan', 6400, 'year', plan_id => 'plan',
		description => 'a plan', metadata => '{"tier": 1}',
		key_lifetime => '30 days', max_keys_per_user => 7,
		http_role => 'web');
	SELECT apikey_plan_create('Unlimited', -1, plan_id => 'unlimited');
	SELECT apikey_plan_create('Off', 10, 'day', plan_id => 'off', is_active => false);
	SELECT apikey_plan_create('Gone', 10, 'hour', plan_id => 'gone');
	SELECT apikey_user_create('alice', 'Alice', 'alice@example.com', 'plan',
		'2020-01-31 12:00+00', '{"team": "red"}');
	SELECT apikey_user_create('bob', 'Bob', 'bob@example.com');
	SELECT apikey_user_create('carol', 'Carol', 'carol@example.com');
	SELECT apikey_user_credits('carol', 'set', 3);
	SELECT apikey_user_create('erin');
	SELECT apikey_user_update('erin', '{"refill_amount": 7, "refill_every": "1 month", "refill_day": 31}');
	SELECT apikey_user_credits('erin', 'set', 50);
	SELECT apikey_user_create('frank');
	SELECT apikey_user_credits('frank', 'set', 5);
	SELECT apikey_role_create('writer', '{docs.*,audit.read}', 'Writes');
	SELECT apikey_role_create('none');
	UPDATE apikeys.users SET is_disabled = true WHERE id = 'bob';
	INSERT INTO apikeys.apis (id, name, default_prefix, default_plan_id, http_role)
		VALUES ('second', 'Second', 'sk_live', 'unlimited', 'web')));

my %secret;
my %id;
my %arguments = (
	plain => q('plain'),
	planned => q('planned', 'dave', 'plan', '{"a": [1, 2]}'),
	shared => q('shared', 'alice', permissions => '{read,write}',
		roles => '{writer}'),
	second => q('second', 'bob', api_id => 'second', prefix => 'x'),
	networks => q('networks', allowed_ips => '{10.0.0.0/8,2001:db8::/32}'),
	disabled => q('disabled', enabled => false),
	gone => q('gone', plan_id => 'gone'),
	deleted => q('deleted', 'alice'),
	expired => q('expired', expires_at => clock_timestamp() + '1 second'),
	regenerated => q('regenerated', expires_at => '2999-12-31'),
	paid => q('paid', credits => 100),
	refilled => q('refilled', credits => 20, refill_amount => 10,
		refill_every => '1 hour'),
	spender => q('spender', 'erin'));
foreach my $name (sort keys %arguments)
{
	($id{$name}, $secret{$name}) = issue($node, 'source', $arguments{$name});
}
my (undef, $regenerated) = split /\|/,
  $node->safe_psql('source',
	"SELECT id, api_key FROM apikey_regenerate('$id{regenerated}', '10 years')"
  );

my %times = (plain => 5, planned => 70, shared => 9, regenerated => 3,
	paid => 7, refilled => 15, spender => 4);
my $history = 0;
foreach my $name (sort keys %times)
{
	verify_times($node, 'source', $secret{$name}, $times{$name});
	$history += $times{$name};
}
$node->safe_psql(
	'source', qq(
	SELECT code FROM apikey_verify('$secret{shared}', '/a', 'GET', '192.0.2.7',
	                               tags => '{"one, two", "three"}');
	DELETE FROM apikeys.keys WHERE id = '$id{deleted}';
	DELETE FROM apikeys.plans WHERE id = 'gone';
	DELETE FROM apikeys.users WHERE id = 'carol'));
$times{shared}++;
$history++;
is(verify($node, 'source', $secret{deleted}), 'NOT_FOUND', 'deleted');
is(verify($node, 'source', $secret{gone}), 'DISABLED', 'plan deleted');
$history++;
ok( $node->poll_query_until(
		'source',
		"SELECT expires_at <= clock_timestamp() FROM apikeys.keys WHERE id = '$id{expired}'"
	),
	'a key expires');
is(verify($node, 'source', $secret{expired}), 'EXPIRED', 'expired');
$history++;

# A refill has come, and more was granted; a balance was given up.
$node->safe_psql(
	'source', qq(
	SET session_replication_role = replica;
	UPDATE apikeys.keys SET refill_since = clock_timestamp() - interval '90 minutes'
	 WHERE id = '$id{refilled}';
	RESET session_replication_role;
	SELECT apikey_credits('$id{paid}', 'add', 11);
	SELECT apikey_user_credits('frank', 'set', NULL);
	SELECT apikey_usage_adjust('$id{paid}', 2, 'a correction')));
is(verify($node, 'source', $secret{refilled}), 'VALID', 'a refill');
$history++;
my $balances = q(SELECT string_agg(format('%s %s', id, credits), ' ' ORDER BY id)
	FROM (SELECT name AS id, credits FROM apikeys.key_objects
	      UNION ALL SELECT id, credits FROM apikeys.user_objects) s
	WHERE credits IS NOT NULL);
my $balanced = 'carol 3 erin 46 paid 104 refilled 9';
is($node->safe_psql('source', $balances), $balanced, 'balances');

# Dated partitions: the worker has made some ahead.
my $dated = q(SELECT count(*) FROM pg_inherits
	WHERE inhparent = 'apikeys.requests'::regclass
	  AND inhrelid <> 'apikeys.requests_default'::regclass);
ok($node->poll_query_until('source', "SELECT ($dated) > 0"),
	'there are dated partitions');
$node->safe_psql(
	'source', qq(
	INSERT INTO apikeys.requests (timestamp, key_id, status, code, cost)
	SELECT now() + '1 day', '$id{plain}', 'allowed', 'VALID', 1));
$history++;
is( $node->safe_psql(
		'source', q(
		SELECT tableoid <> 'apikeys.requests_default'::regclass
		  FROM apikeys.requests WHERE timestamp > now() + '12 hours')),
	't',
	'one of them holds a row');

# Let the worker come to rest: everything written, last_used_at as well.
ok(flushed($node, 'source', $history), 'the history is complete');
ok( $node->poll_query_until(
		'source', q(
		SELECT count(*) = 10 AND sum(current_usage) = 144
		       AND bool_and(charged = current_usage - CASE
		           WHEN refilled_at IS NULL THEN 0 ELSE 5 END)
		       AND bool_and(charged = ceiling OR period <> 'credits')
		  FROM apikeys.usage)),
	'the counts are written');
ok( $node->poll_query_until(
		'source', q(
		SELECT count(last_used_at) >= 4 FROM apikeys.keys)),
	'so are the times of use');
ok( $node->poll_query_until(
		'source', q(
		SELECT sum(requests) = (SELECT count(*) FROM apikeys.requests
		                         WHERE timestamp < now() + '12 hours')
		  FROM apikeys.rollups WHERE step = 'day')),
	'and the rollups');

# ----- Dump and restore -----

# Every row of every table, in order.
my @tables =
  qw(apis plans users roles keys requests usage ledger rollups rollup_totals incarnations);

sub rows
{
	my ($database, $table, $condition) = @_;
	my $row = 'to_jsonb(t)';

	# The meter of the restored database has an incarnation of its own, and
	# takes the restored one, which was open, for crashed.
	$row .= " - 'superseded_at'" if $table eq 'incarnations';
	return $node->safe_psql(
		$database, qq(
		SELECT coalesce(string_agg(r::text, E'\\n' ORDER BY r::text), '')
		  FROM (SELECT $row AS r FROM apikeys.$table t WHERE $condition) s));
}

my %source = map { $_ => rows('source', $_, 'true') } @tables;
my $incarnations =
  $node->safe_psql('source', 'SELECT array_agg(id) FROM apikeys.incarnations');
foreach my $table (@tables)
{
	isnt($source{$table}, '', "the source has rows in $table");
}

my $dir = PostgreSQL::Test::Utils::tempdir;
my %dump = (plain => "$dir/dump.sql", custom => "$dir/dump.custom");
$node->command_ok(
	[
		'pg_dump', '-Fp', '--no-sync', '-f', $dump{plain},
		$node->connstr('source')
	],
	'pg_dump to a script');
$node->command_ok(
	[
		'pg_dump', '-Fc', '-Z0', '--no-sync', '-f', $dump{custom},
		$node->connstr('source')
	],
	'pg_dump to an archive');

is_deeply({ map { $_ => rows('source', $_, 'true') } @tables },
	\%source, 'the source did not change meanwhile');

# A dump holds what can be recognised of a secret, never the secret.
my $text = slurp_file($dump{plain});
my $archive = slurp_file($dump{custom});
foreach my $name (sort keys %secret)
{
	my ($random) = $secret{$name} =~ /_([0-9A-Za-z]{38})$/;
	ok($random, "$name has a secret");
	is(index($text, $random), -1, "the secret of $name is not in the script");
	is(index($archive, $random), -1, 'nor in the archive');
}

foreach my $format ('plain', 'custom')
{
	my $database = "restored_$format";
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	if ($format eq 'plain')
	{
		$node->command_checks_all(
			[
				'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d',
				$node->connstr($database), '-f', $dump{plain}
			],
			0, [], [qr/^$/],
			'the script restores without a word');
	}
	else
	{
		$node->command_checks_all(
			[
				'pg_restore', '--exit-on-error', '-d',
				$node->connstr($database), $dump{custom}
			],
			0, [], [qr/^$/],
			'the archive restores without a word');
	}

	foreach my $table (@tables)
	{
		my $condition =
		  $table eq 'incarnations' ? "id = ANY ('$incarnations')" : 'true';
		is(rows($database, $table, $condition),
			$source{$table}, "$table is as it was ($format)");
	}
	is($node->safe_psql($database, $dated),
		$node->safe_psql('source', $dated),
		"so are the dated partitions ($format)");

	is($node->safe_psql($database, $balances), $balanced, "so are balances ($format)");
	is(rows($database, 'ledger', 'true'), $source{ledger}, "and nothing is added to the ledger ($format)");

	# It works: old secrets, counts, new keys, new history.
	is(verify($node, $database, $secret{planned}),
		'VALID', "an old secret is valid ($format)");
	is(usage($node, $database, $id{planned}),
		$times{planned} + 1, "its count goes on ($format)");
	is(verify($node, $database, $secret{regenerated}),
		'VALID', "so is one in its grace ($format)");
	is(verify($node, $database, $regenerated),
		'VALID', "and the one after it ($format)");
	is(verify($node, $database, $secret{deleted}),
		'NOT_FOUND', "a deleted key stays deleted ($format)");
	is(verify($node, $database, $secret{expired}),
		'EXPIRED', "an expired key stays expired ($format)");
	is(verify($node, $database, $secret{disabled}),
		'DISABLED', "a disabled key stays disabled ($format)");
	my ($new, $new_secret) =
	  issue($node, $database, q('new', 'alice'));
	is(verify($node, $database, $new_secret), 'VALID',
		"a new key can be made ($format)");
	is(usage($node, $database, $new), $times{shared} + 1,
		"and shares its user's count ($format)");
	ok(flushed($node, $database, $history + 6),
		"history goes on ($format)");
	ok( $node->poll_query_until(
			$database, qq(
			SELECT sum(requests) = $history - 1 + 6
			  FROM apikeys.rollups WHERE step = 'day')),
		"and so do the rollups ($format)");

	$node->safe_psql($database,
		"SELECT apikey_delete('$new'); SELECT apikey_purge('0')");
	is( $node->safe_psql(
			$database, 'SELECT count(*) FROM apikeys.keys WHERE name = \'new\''
		),
		'0',
		"and purged ($format)");
}

# What is reserved while the meter is closed.
$node->safe_psql('postgres', 'CREATE DATABASE holds');
install($node, 'holds');
my ($held_id, $holder) = issue($node, 'holds', q('holder', credits => 10));
my $held = $node->safe_psql('holds', "SELECT reservation_id FROM apikey_reserve('$holder', 6)");
$node->safe_psql('postgres', q(
	SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
	 WHERE backend_type = 'apikeys worker' AND datname = 'holds'));
$node->command_ok([ 'pg_dump', '-Fc', '--no-sync', '-f', "$dir/holds", $node->connstr('holds') ],
	'pg_dump of a closed meter');
$node->safe_psql('postgres', 'CREATE DATABASE restored_holds');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored_holds'), "$dir/holds" ],
	'is restored');
foreach my $database ('restored_holds', 'holds')
{
	is( $node->safe_psql($database, "SELECT credits, current_usage FROM apikey_settle('$held', 2)"),
		'8|2', "what was reserved is settled ($database)");
}

is(verify($node, 'source', $secret{planned}), 'VALID', 'the source goes on');
is(usage($node, 'source', $id{planned}),
	$times{planned} + 1, 'with its own count');

$node->stop;
done_testing();
