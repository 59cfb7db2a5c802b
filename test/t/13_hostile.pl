# What others may do to the database must not turn the worker against it.

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
	'apikeys.flush_interval' => '100ms',
	'apikeys.last_used_interval' => '0');
$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE app; CREATE ROLE mallory LOGIN');
install($node, 'app');
$node->safe_psql('app',
	q(SELECT apikey_plan_create('Plan', 1000, 'year', plan_id => 'plan')));
my ($id, $secret) = issue($node, 'app', q('key', plan_id => 'plan'));

# ----- Triggers that are not the owner's -----

$node->safe_psql(
	'app', q(
	CREATE SCHEMA m AUTHORIZATION mallory;
	GRANT USAGE ON SCHEMA apikeys TO mallory;
	GRANT TRIGGER ON apikeys.keys, apikeys.usage, apikeys.requests,
		apikeys.requests_default TO mallory;
	SET SESSION AUTHORIZATION mallory;
	CREATE TABLE m.seen (who text);
	GRANT INSERT ON m.seen TO PUBLIC;
	CREATE FUNCTION m.f() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN INSERT INTO m.seen VALUES (current_user); RETURN NULL; END $$;
	CREATE TRIGGER t AFTER INSERT OR UPDATE ON apikeys.keys
		FOR EACH ROW EXECUTE FUNCTION m.f();
	CREATE TRIGGER t AFTER INSERT OR UPDATE ON apikeys.usage
		FOR EACH ROW EXECUTE FUNCTION m.f();
	CREATE TRIGGER t AFTER INSERT ON apikeys.requests_default
		FOR EACH ROW EXECUTE FUNCTION m.f();
	CREATE TRIGGER s AFTER INSERT ON apikeys.requests
		FOR EACH STATEMENT EXECUTE FUNCTION m.f()));
is(verify($node, 'app', $secret), 'VALID', 'a request');
ok(flushed($node, 'app', 1), 'is in the history');
ok( $node->poll_query_until(
		'app', q(
		SELECT u.current_usage = 1 AND k.last_used_at IS NOT NULL
		  FROM apikeys.usage u, apikeys.keys k)),
	'and in the other tables');
is($node->safe_psql('app', 'SELECT count(*) FROM m.seen'),
	'0', 'the worker has fired no trigger of another role');
$node->safe_psql('app', q(UPDATE apikeys.keys SET name = 'other'));
is($node->safe_psql('app', 'SELECT count(*) FROM m.seen'),
	'1', 'though the triggers are there');

# ----- Functions that a command of a superuser calls for their owner -----

# Maintenance runs what indexes need as the table's owner; session_user is then
# who gave the command, or who autovacuum runs as.
$node->safe_psql(
	'app', q(
	CREATE ROLE powerful;
	SELECT apikey_grant('mallory', 'manager');
	SET SESSION AUTHORIZATION mallory;
	CREATE TABLE m.bait AS SELECT 1 AS a;
	CREATE FUNCTION m.g(a int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT a';
	CREATE INDEX ON m.bait (m.g(a));
	CREATE OR REPLACE FUNCTION m.g(a int) RETURNS int LANGUAGE plpgsql AS $$
	BEGIN
	    BEGIN
	        PERFORM public.apikey_plan_update('plan', '{"http_role": "powerful"}');
	        INSERT INTO m.seen VALUES ('named it');
	    EXCEPTION WHEN insufficient_privilege THEN
	        INSERT INTO m.seen VALUES ('refused');
	    END;
	    RETURN a;
	END $$;
	TRUNCATE m.seen));
my ($ret, $stdout, $stderr) = $node->psql('app',
	q(SET SESSION AUTHORIZATION mallory; SELECT m.g(1)));
is($node->safe_psql('app', 'SELECT string_agg(who, chr(32)) FROM m.seen'),
	'refused', 'a manager cannot name a role that is not its own');
$node->safe_psql('app', 'TRUNCATE m.seen; ANALYZE m.bait');
is($node->safe_psql('app', 'SELECT string_agg(DISTINCT who, chr(32)) FROM m.seen'),
	'refused', 'nor by a function that ANALYZE calls for it');
is($node->safe_psql('app', q(SELECT http_role IS NULL FROM apikeys.plans WHERE id = 'plan')),
	't', 'the plan has no role');
$node->safe_psql('app', q(
	SELECT apikey_plan_update('plan', '{"http_role": "powerful"}');
	SELECT apikey_plan_update('plan', '{"http_role": null}');
	DROP TABLE m.bait));

# Who is a member of a role without being able to set it.
if ($node->pg_version >= 16)
{
	$node->safe_psql('app', 'GRANT powerful TO mallory WITH INHERIT FALSE, SET FALSE');
	($ret, $stdout, $stderr) = $node->psql('app', q(
		SET SESSION AUTHORIZATION mallory;
		SELECT apikey_plan_update('plan', '{"http_role": "powerful"}')));
	like($stderr, qr/permission denied to give role/, 'who cannot set a role cannot name it');
	$node->safe_psql('app', 'REVOKE powerful FROM mallory');
}

# ----- Commands that are not allowed -----

my $open = $node->safe_psql('app', 'SELECT id FROM apikeys.incarnations');
my $mallory = $node->connstr('postgres') . ' user=mallory';
foreach my $command ('DROP DATABASE app', 'ALTER DATABASE app RENAME TO other',
	'CREATE DATABASE other TEMPLATE app', 'ALTER DATABASE app SET TABLESPACE pg_default')
{
	my ($stdout, $stderr);
	my $ok = run_log([ 'psql', '-Xq', '-d', $mallory, '-c', $command ],
		'>', \$stdout, '2>', \$stderr);
	ok(!$ok, "$command is refused");
}
is(verify($node, 'app', $secret), 'VALID', 'another request');
is($node->safe_psql('app', 'SELECT string_agg(id::text, chr(32)) FROM apikeys.incarnations'),
	$open, 'the worker has stayed');

# ----- Settings of the database -----

$node->safe_psql(
	'app', q(
	ALTER DATABASE app SET role = 'mallory';
	ALTER DATABASE app SET client_encoding = 'EUC_JP';
	ALTER DATABASE app SET default_transaction_read_only = on;
	ALTER DATABASE app SET default_transaction_isolation = 'serializable';
	ALTER DATABASE app SET session_replication_role = 'origin';
	ALTER DATABASE app SET search_path = 'm';
	ALTER DATABASE app SET statement_timeout = '1ms';
	ALTER DATABASE app SET exit_on_error = on;
	ALTER DATABASE app SET synchronous_commit = off)
	  . ($node->pg_version >= 17 ? "; ALTER DATABASE app SET transaction_timeout = '1ms'" : ''));
$node->restart;
my $settings = q(SET role = 'none'; SET client_encoding = 'UTF8';
	SET search_path = public;);
{
	# The limit of 1 ms is meant for the worker: the client is spared.
	local $ENV{PGOPTIONS} = '-c statement_timeout=0'
	  . ($node->pg_version >= 17 ? ' -c transaction_timeout=0' : '');
	is( $node->safe_psql(
			'app', "$settings SELECT code FROM apikey_verify('$secret', U&'/\\20ac')"),
		'VALID', 'a request with settings of the database against the worker');
}
$node->safe_psql('postgres', 'ALTER DATABASE app RESET ALL');
ok( $node->poll_query_until(
		'app',
		q(SELECT count(*) = 1 FROM apikeys.requests WHERE endpoint = U&'/\\20ac')),
	'is in the history as it was said');

# The worker was started with these settings, and outlives an error.
my $pid = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'apikeys worker' AND datname = 'app');
my $before = $node->safe_psql('app', $pid);
my $failures = q(SELECT value FROM apikeys.stats WHERE name = 'flush_failures');
my $failed = $node->safe_psql('app', $failures);
my $blocker = $node->background_psql('app');
$blocker->query_safe('BEGIN; LOCK TABLE apikeys.requests IN ACCESS EXCLUSIVE MODE');
is(verify($node, 'app', $secret), 'VALID', 'a request that cannot be written yet');
ok($node->poll_query_until('app', qq(
	SELECT ($failures) > $failed OR NOT EXISTS ($pid AND pid = $before))), 'the worker fails');
$blocker->quit;
is($node->safe_psql('app', $pid), $before, 'and is still there');

$node->stop;
done_testing();
