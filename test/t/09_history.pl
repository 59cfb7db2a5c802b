# History: a full buffer, partitions, retention, and the sweep of keys.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'main',
	'apikeys.history_buffer' => '1MB',
	'apikeys.flush_interval' => '60s',
	'apikeys.history_overflow' => 'wait',
	'apikeys.history_wait_timeout' => '60s',
	'apikeys.sweep_interval' => '1s',
	'apikeys.expired_key_grace' => '0');
$node->start;
install($node);
my ($id, $secret) = issue($node, 'postgres', q('key'));

sub stat_value
{
	my ($name) = @_;
	my $value = $node->safe_psql('postgres',
		"SELECT value FROM apikeys.stats WHERE name = '$name'");
	die "there is no statistic $name" if $value eq '';
	return $value;
}

# Far more than the buffer holds.
my $many = 4000;
my $overflow = qq(
	SELECT count(*) FILTER (
	           WHERE (apikey_verify('$secret', repeat('x', 1000))).valid)
	  FROM generate_series(1, $many));

is($node->safe_psql('postgres', $overflow),
	$many, 'verification waits for space in the history');
is(stat_value('history_dropped'), '0', 'and nothing is dropped');
is(usage($node, 'postgres', $id), $many, 'all are counted');

# The rest is still in the buffer, and comes with the next flush.
$node->append_conf('postgresql.conf', q(apikeys.flush_interval = '100ms'));
$node->reload;
ok(flushed($node, 'postgres', $many), 'and remembered');

$node->append_conf(
	'postgresql.conf', q(
apikeys.history_overflow = 'drop'
apikeys.flush_interval = '60s'));
$node->reload;

# Nothing is flushed while the table is locked.
my $blocker = $node->background_psql('postgres');
$blocker->query_safe(
	'BEGIN; LOCK TABLE apikeys.requests IN ACCESS EXCLUSIVE MODE');
is($node->safe_psql('postgres', $overflow),
	$many, 'verification goes on where records may be dropped');
is(usage($node, 'postgres', $id), 2 * $many, 'all are counted');
my $dropped = stat_value('history_dropped');
cmp_ok($dropped, '>', 0, 'some are not remembered');
cmp_ok($dropped, '<', $many, 'some are');
$blocker->query_safe('COMMIT');
$blocker->quit;
$node->append_conf('postgresql.conf', q(apikeys.flush_interval = '100ms'));
$node->reload;
ok(flushed($node, 'postgres', 2 * $many - $dropped),
	'each is remembered or told of as dropped');

# A wait for space has an end, and then the record is dropped, not the answer.
$node->append_conf(
	'postgresql.conf', q(
apikeys.history_overflow = 'wait'
apikeys.history_wait_timeout = '100ms'));
$node->reload;
$blocker = $node->background_psql('postgres');
$blocker->query_safe(
	'BEGIN; LOCK TABLE apikeys.requests IN ACCESS EXCLUSIVE MODE');
is($node->safe_psql('postgres', $overflow),
	$many, 'verification goes on after a wait');
$blocker->query_safe('COMMIT');
$blocker->quit;
my $more = stat_value('history_dropped');
cmp_ok($more, '>', $dropped, 'what found no space is dropped');
ok(flushed($node, 'postgres', 3 * $many - $more), 'the rest is remembered');

# Without history, verification and counting go on.
$node->append_conf('postgresql.conf', q(apikeys.history = off));
$node->reload;
is(verify_times($node, 'postgres', $secret, 10), 10, 'history can be off');
is(usage($node, 'postgres', $id), 3 * $many + 10, 'requests are counted');
$node->append_conf('postgresql.conf', q(apikeys.history = on));
$node->reload;
is(verify($node, 'postgres', $secret), 'VALID', 'history can be on again');
ok(flushed($node, 'postgres', 3 * $many - $more + 1),
	'what was verified meanwhile is not in it');

# ----- Partitions -----

ok( $node->poll_query_until(
		'postgres', q(
		SELECT count(*) >= 2
		  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
		       substring(pg_get_expr(c.relpartbound, c.oid)
		                 from '''([^'']*)''') bound
		 WHERE i.inhparent = 'apikeys.requests'::regclass
		   AND bound::timestamptz > now())),
	'partitions of the next days are made');
$node->safe_psql(
	'postgres', qq(
	INSERT INTO apikeys.requests (timestamp, key_id, status, code, cost)
	VALUES (now() + '1 day', '$id', 'allowed', 'VALID', 1)));
is( $node->safe_psql(
		'postgres', q(
		SELECT count(*) FROM apikeys.requests_default
		 WHERE timestamp > now() + '12 hours')),
	'0',
	'tomorrow has one');
is( $node->safe_psql(
		'postgres', q(
		SELECT i.inhrelid::regclass FROM pg_inherits i
		 WHERE i.inhparent = 'apikeys.requests'::regclass
		   AND NOT EXISTS (SELECT FROM pg_index x
		                    WHERE x.indrelid = i.inhrelid))),
	'',
	'each has an index');

# ----- Retention -----

# A day long ago, with a partition as the worker makes them. Both at once, lest
# a sweep come in between.
my $name = $node->safe_psql(
	'postgres', q(
	SELECT i.inhrelid::regclass FROM pg_inherits i
	 WHERE i.inhparent = 'apikeys.requests'::regclass
	   AND i.inhrelid <> 'apikeys.requests_default'::regclass
	 ORDER BY 1 LIMIT 1));
$name =~ s/\d{8}$/20200101/ or $name =~ s/\d{4}_\d{2}_\d{2}$/2020_01_01/;
like($name, qr/2020/, 'the name of a partition tells its day');
$node->safe_psql(
	'postgres', qq(
	BEGIN;
	CREATE TABLE $name PARTITION OF apikeys.requests
		FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00');
	INSERT INTO apikeys.requests (timestamp, key_id, status, code, cost)
	VALUES ('2020-01-01 12:00+00', '$id', 'allowed', 'VALID', 1);
	COMMIT));

# Verified since, so that the worker has been about.
is(verify($node, 'postgres', $secret), 'VALID', 'a request');
ok( $node->poll_query_until(
		'postgres', "SELECT to_regclass('$name') IS NULL"),
	'a partition older than the retention is dropped');
is( $node->safe_psql(
		'postgres',
		q(SELECT count(*) FROM apikeys.requests WHERE timestamp < '2020-02-01')
	),
	'0',
	'with its rows');
ok(flushed($node, 'postgres', 3 * $many - $more + 3),
	'nothing else is');

# ----- Sweep -----

my ($short, $short_secret) = issue($node, 'postgres',
	q('short', expires_at => clock_timestamp() + '2 seconds'));
ok( $node->poll_query_until(
		'postgres',
		"SELECT deleted_at IS NOT NULL FROM apikeys.keys WHERE id = '$short'"),
	'an expired key is marked as deleted');
is( $node->safe_psql(
		'postgres', qq(
		SELECT k.deleted_at >= k.expires_at, o.status
		  FROM apikeys.keys k JOIN apikeys.key_objects o USING (id)
		 WHERE k.id = '$short')),
	't|deleted',
	'not before it expired');
is(verify($node, 'postgres', $short_secret),
	'EXPIRED', 'it is still told from one that never was');
is(verify($node, 'postgres', $secret), 'VALID', 'no other key is touched');

# Nobody verifies here: the launcher sees to it.
$node->safe_psql('postgres', 'CREATE DATABASE quiet');
install($node, 'quiet');
($short) = issue($node, 'quiet',
	q('short', expires_at => clock_timestamp() + '1 second'));
ok( $node->poll_query_until(
		'quiet',
		"SELECT deleted_at IS NOT NULL FROM apikeys.keys WHERE id = '$short'"),
	'also in a database where nothing is verified');

# With a grace it is left for the while.
$node->append_conf('postgresql.conf', q(apikeys.expired_key_grace = '1d'));
$node->reload;
my ($late, $late_secret) = issue($node, 'postgres',
	q('late', expires_at => clock_timestamp() + '1 second'));
ok( $node->poll_query_until(
		'postgres', "SELECT status = 'expired' FROM apikey_get('$late')"),
	'a key expires');
is(verify($node, 'postgres', $late_secret), 'EXPIRED', 'it is refused');

# One that has no such grace left tells that a sweep has come by since.
my ($stale) = issue($node, 'postgres', q('stale'));
$node->safe_psql('postgres',
	"UPDATE apikeys.keys SET expires_at = now() - interval '2 days' WHERE id = '$stale'");
ok( $node->poll_query_until(
		'postgres', "SELECT status = 'deleted' FROM apikey_get('$stale')"),
	'a key that expired long ago is marked');
is( $node->safe_psql('postgres', "SELECT status FROM apikey_get('$late')"),
	'expired', 'one in its grace is not');

# ----- A database that knows no characters -----

# A client that reads UTF-8 can read what was cut: the last character is left out.
$node->safe_psql('postgres', 'CREATE DATABASE bytes ENCODING SQL_ASCII TEMPLATE template0');
install($node, 'bytes');
my ($bytes_id, $bytes) = issue($node, 'bytes', q('bytes'));
is( $node->safe_psql('bytes',
		"SELECT v.code FROM unnest('{ü,üü,€,€€}'::text[]) x, apikey_verify('$bytes', repeat('a', 1021) || x) v"),
	join("\n", ('VALID') x 4), 'endpoints of 1023 to 1027 bytes');
ok(flushed($node, 'bytes', 4), 'are recorded');
is( $node->safe_psql(
		'bytes', qq(
		SET client_encoding = utf8;
		SELECT octet_length(endpoint) FROM apikey_requests('$bytes_id') ORDER BY timestamp)),
	"1023\n1023\n1024\n1024", 'cut at a character');

$node->stop;
done_testing();
