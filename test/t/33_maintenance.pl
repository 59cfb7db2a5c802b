# Tidying up goes on whatever stands in the way of a part of it: publications,
# views on old partitions of the history, locks.

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
	'apikeys.sweep_interval' => '1s',
	'apikeys.expired_key_grace' => '0');
$node->start;

sub answer
{
	my ($query, $database) = @_;
	return $node->safe_psql($database // 'postgres', $query);
}

# Makes a key that expires at once, and waits until it is marked for it.
sub sweeps
{
	my ($what) = @_;
	my ($id) = issue($node, 'postgres',
		q('short', expires_at => clock_timestamp() + '1 second'));
	ok( $node->poll_query_until(
			'postgres',
			"SELECT deleted_at IS NOT NULL FROM apikeys.keys WHERE id = '$id'"),
		"an expired key is marked ($what)");
	return;
}

# ----- Publications of all tables -----

# Some history came before there was a partition for it: both at once, lest a
# visit come in between.
$node->safe_psql(
	'postgres', q(
	CREATE PUBLICATION of_all FOR ALL TABLES;
	CREATE EXTENSION pgcrypto;
	BEGIN;
	CREATE EXTENSION apikeys;
	INSERT INTO apikeys.requests (timestamp, key_id, status, code, cost)
	VALUES (now(), apikeys.uuidv7(), 'allowed', 'VALID', 1);
	COMMIT;
	CREATE PUBLICATION of_schema FOR TABLES IN SCHEMA apikeys));
my ($id, $secret) = issue($node, 'postgres', q('key', user_id => 'alice'));
is( answer("SELECT code FROM apikey_verify('$secret', ip_address => '192.0.2.1')"),
	'VALID', 'a request');
ok(flushed($node, 'postgres', 2), 'is in the history');
ok( $node->poll_query_until(
		'postgres', q(
		SELECT count(*) = 4 FROM pg_inherits
		 WHERE inhparent = 'apikeys.requests'::regclass)),
	'partitions are made ahead');
is(answer('SELECT count(*) FROM apikeys.requests_default'),
	'0', 'and take what came before them');

my $identities = q(
	SELECT coalesce(string_agg(c.relname, ' '), 'all')
	  FROM pg_class c
	 WHERE c.relnamespace = 'apikeys'::regnamespace AND c.relkind IN ('r', 'p')
	   AND c.relreplident <> 'f'
	   AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary));
is(answer($identities), 'all', 'each table has a replica identity');

sweeps('with publications');
is(answer(q(SELECT id FROM apikey_erase_user('alice'))), 'alice', 'a user is erased');
is(answer(q(SELECT count(*) FROM apikeys.requests WHERE ip_address IS NOT NULL)),
	'0', 'no address of theirs is left');
ok( $node->poll_query_until(
		'postgres',
		'SELECT count(*) = 1 FROM apikeys.erasures WHERE noticed_at IS NOT NULL'),
	'the worker has looked for late ones');
is(answer(q(DELETE FROM apikeys.keys WHERE deleted_at IS NULL; SELECT apikey_purge('0') IS NOT NULL)),
	't', 'a purge');
is(answer('SELECT flush_failures, last_failure_message FROM apikeys.health'),
	'0|', 'nothing has failed');

# What a DBA has added to the history, its next partitions have too, and what the
# DEFAULT partition caught moves there with it. (A generated column cannot be
# published with a replica identity that is full.)
answer('DROP PUBLICATION of_all; DROP PUBLICATION of_schema');
my $last = answer(q(
	SELECT max(inhrelid::regclass::text) FROM pg_inherits
	 WHERE inhparent = 'apikeys.requests'::regclass AND inhrelid <> 'apikeys.requests_default'::regclass));
my $noon = join('-', $last =~ /_(\d+)_(\d+)_(\d+)$/) . ' 12:00+00';
answer(qq(
	ALTER TABLE apikeys.requests ADD COLUMN gone int DEFAULT 7, ADD COLUMN region text NOT NULL DEFAULT 'north',
		ADD COLUMN doubled bigint GENERATED ALWAYS AS (cost * 2) STORED,
		ADD CONSTRAINT no_fortune CHECK (cost < 1000000000);
	ALTER TABLE apikeys.requests DROP COLUMN gone;
	BEGIN;
	DROP TABLE $last;
	INSERT INTO apikeys.requests (timestamp, key_id, status, code, cost, region)
	VALUES ('$noon', '$id', 'allowed', 'VALID', 3, 'south');
	COMMIT));
ok($node->poll_query_until('postgres', "SELECT to_regclass('$last') IS NOT NULL"),
	'a partition of a table that a DBA has changed is made');
is(answer("SELECT region, doubled FROM $last"), 'south|6', 'and has what came before it');
isnt($node->psql('postgres', "UPDATE $last SET cost = 2000000000"), 0, 'and its constraint');
is(answer('SELECT flush_failures, last_failure_message FROM apikeys.health'),
	'0|', 'and nothing has failed');
answer(q(
	ALTER TABLE apikeys.requests DROP COLUMN doubled, DROP COLUMN region, DROP CONSTRAINT no_fortune;
	CREATE PUBLICATION of_all FOR ALL TABLES;
	CREATE PUBLICATION of_schema FOR TABLES IN SCHEMA apikeys));

# Partitions are in a dump as ordinary tables.
my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '--no-sync', '-f', $dump, 'postgres' ], 'a dump');
answer('CREATE DATABASE restored');
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('restored'), '-f', $dump ],
	'is restored');
is(answer($identities, 'restored'), 'all', 'with the replica identities');
answer('DROP DATABASE restored');
answer('DROP PUBLICATION of_all; DROP PUBLICATION of_schema');

# ----- Old partitions that cannot be dropped -----

# One is used by a view, three by a transaction, the others by nobody. After
# three that are locked, retention waits for the next round. Meanwhile nothing is
# old.
sub set_retention
{
	my ($retention) = @_;
	answer("ALTER SYSTEM SET apikeys.history_retention = '$retention'");
	$node->reload;
	return;
}
set_retention(0);
answer(
	join '',
	map {
		sprintf 'CREATE TABLE apikeys.requests_2020_01_%02d PARTITION OF apikeys.requests'
		  . " FOR VALUES FROM ('2020-01-%02d 00:00+00') TO ('2020-01-%02d 00:00+00');",
		  $_, $_, $_ + 1
	} 1 .. 7);
answer('CREATE VIEW january AS SELECT * FROM apikeys.requests_2020_01_01');
my $reader = $node->background_psql('postgres');
$reader->query_safe('BEGIN; SELECT FROM apikeys.requests_2020_01_02, apikeys.requests_2020_01_05, apikeys.requests_2020_01_06');
set_retention('90d');
my $left = q(SELECT string_agg(right(c.relname, 2), ' ' ORDER BY c.relname)
	FROM pg_class c WHERE c.relname ~ '^requests_2020_01_..$');
ok($node->poll_query_until('postgres', $left, '01 02 05 06 07'),
	'others are dropped');
sweeps('with old partitions that stay');
my $failure = "SELECT last_failure_message FROM apikeys.health";
ok( $node->poll_query_until(
		'postgres', "SELECT ($failure) LIKE 'cannot drop table apikeys.requests_2020_01_01%'"),
	'health says why one stays');
$reader->query_safe('ROLLBACK');
$reader->quit;
ok($node->poll_query_until('postgres', $left, '01'), 'those that were locked, and behind them, are dropped later');
answer('DROP VIEW january');
ok($node->poll_query_until('postgres', "SELECT ($left) IS NULL"), 'and so is the other');

# ----- Partitions of somebody's own -----

# From tomorrow on, instead of those that the worker has made.
my $partitions = q(SELECT count(*) FROM pg_inherits WHERE inhparent = 'apikeys.requests'::regclass);
my $failures = q(SELECT flush_failures FROM apikeys.health);
foreach my $until (q('infinity'), 'MAXVALUE')
{
	my $tomorrow = answer(q(SELECT (now() AT TIME ZONE 'UTC')::date + 1));
	my $dated = answer(qq(
		SELECT string_agg(i.inhrelid::regclass::text, ', ') FROM pg_inherits i
		 WHERE i.inhparent = 'apikeys.requests'::regclass
		   AND i.inhrelid::regclass::text
		       BETWEEN to_char('$tomorrow'::date, '"apikeys.requests_"YYYY_MM_DD') AND 'apikeys.requests_9'));
	answer(qq(
		BEGIN;
		DROP TABLE $dated;
		CREATE TABLE apikeys.own PARTITION OF apikeys.requests FOR VALUES FROM ('$tomorrow 00:00+00') TO ($until);
		COMMIT));
	my $failed = answer($failures);
	sweeps("with a partition of one's own, to $until");
	is(answer($failures), $failed, '... and nothing fails');
	is(answer($partitions), 3, '... or is made in its place');
	answer('DROP TABLE apikeys.own');
	ok($node->poll_query_until('postgres', "SELECT ($partitions) = 4"), '... but is when it has gone');
}

# ----- Much history in the DEFAULT partition -----

# What is old goes, by batches, and what is not is not looked through each time.
answer(q(
	INSERT INTO apikeys.requests_default (timestamp, key_id, status, code, cost)
	SELECT now() - interval '200 days' - n * interval '1 second', apikeys.uuidv7(), 'allowed', 'VALID', 1
	  FROM generate_series(1, 25000) n
	UNION ALL
	SELECT now() - interval '20 days' - n * interval '1 second', apikeys.uuidv7(), 'allowed', 'VALID', 1
	  FROM generate_series(1, 20000) n));
my $in_default = q(SELECT count(*) FROM apikeys.requests_default);
ok($node->poll_query_until('postgres', "SELECT ($in_default) = 20000"), 'old rows are removed');
my $scans = q(SELECT seq_scan FROM pg_stat_user_tables WHERE relid = 'apikeys.requests_default'::regclass);
my $scanned = answer($scans);
sweeps("with much that stays, $_") foreach 1 .. 3;
is(answer($scans), $scanned, 'what stays is not read at each sweep');
is(answer($in_default), 20000, 'and stays');
answer('DELETE FROM apikeys.requests_default');

# ----- A retention that reaches back beyond all history -----

# To before the year 1, and the longest that can be set.
my $kept = q(SELECT count(*) FROM apikeys.requests);
my ($rows, $tables, $failed) = map { answer($_) } $kept, $partitions, $failures;
cmp_ok($rows, '>', 0, 'there is history');
foreach my $retention ('800000d', '2147483647')
{
	set_retention($retention);
	sweeps("with a retention of $retention");
	is(answer($kept), $rows, '... and all history is kept');
	is(answer($partitions), $tables, '... and its partitions');
	is(answer($failures), $failed, '... and nothing fails');
}
$node->stop;
done_testing();
