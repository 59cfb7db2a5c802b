# A restore to an earlier time: what was revoked or replaced since is good
# again. A fence refuses all secrets until they are replaced, and a list that
# was kept elsewhere says whose may be good again at once.

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
	'wal_level' => 'logical',
	'max_wal_senders' => '5',
	'max_replication_slots' => '5',
	'hot_standby' => 'on');
$node->enable_archiving;
$node->start;
install($node);

sub code
{
	my ($server, %secret) = @_;
	return join ' ', map { "$_ " . verify($server, 'postgres', $secret{$_}) } sort keys %secret;
}

# ----- The list that is kept elsewhere -----

# What there is of it needs no extension, and no secret or digest leaves the
# server.
my $elsewhere = PostgreSQL::Test::Cluster->new('elsewhere');
$elsewhere->init;
$elsewhere->start;
$elsewhere->safe_psql(
	'postgres', q(
	CREATE SCHEMA apikeys;
	CREATE TABLE apikeys.keys (id uuid PRIMARY KEY, updated_at timestamptz, enabled boolean, deleted_at timestamptz);
	CREATE TABLE apikeys.users (id text PRIMARY KEY, updated_at timestamptz, is_disabled boolean, deleted_at timestamptz)));
$node->safe_psql(
	'postgres', q(
	CREATE PUBLICATION apikeys_elsewhere FOR TABLE
		apikeys.keys (id, updated_at, enabled, deleted_at),
		apikeys.users (id, updated_at, is_disabled, deleted_at)));
$elsewhere->safe_psql('postgres',
	'CREATE SUBSCRIPTION apikeys_elsewhere CONNECTION $$'
	  . $node->connstr('postgres')
	  . '$$ PUBLICATION apikeys_elsewhere');

# ----- Before the moment to which is restored -----

$node->safe_psql(
	'postgres', q(
	INSERT INTO apikeys.apis (id) VALUES ('other');
	SELECT apikey_plan_create('Plan', 640, 'year', plan_id => 'plan');
	SELECT apikey_user_create('eve', 'Eve');
	SELECT apikey_user_create('mallory')));
my %arguments = (
	kept => q('kept'),
	deleted => q('deleted'),
	disabled => q('disabled'),
	regenerated => q('regenerated'),
	narrowed => q('narrowed', permissions => '{docs}'),
	expired => q('expired'),
	owned => q('owned', 'mallory'),
	counted => q('counted', plan_id => 'plan'),
	paid => q('paid', credits => 1000),
	other => q('other', api_id => 'other'));
my (%id, %secret);
($id{$_}, $secret{$_}) = issue($node, 'postgres', $arguments{$_})
  foreach sort keys %arguments;
$node->backup('base');

is(verify_times($node, 'postgres', $secret{counted}, 100), 100, 'some requests');
is(verify_times($node, 'postgres', $secret{paid}, 30), 30, 'and some of credits');

# Requests of the one in its plan's period, of the other by month and of credits.
ok( $node->poll_query_until(
		'postgres', qq(
		SELECT count(*) = 3 FROM apikeys.usage
		 WHERE (subject_id, current_usage) IN (('$id{counted}', 100), ('$id{paid}', 30)))),
	'they are written');
ok(flushed($node, 'postgres', 130), 'as is the history');
$node->safe_psql('postgres', q(SELECT pg_create_restore_point('before')));

# ----- And after it -----

my ($new_id, $new) = issue($node, 'postgres', q('new'));
my (undef, $regenerated) = split /\|/,
  $node->safe_psql('postgres', "SELECT id, api_key FROM apikey_regenerate('$id{regenerated}')");
$node->safe_psql(
	'postgres', qq(
	SELECT apikey_delete('$id{deleted}');
	UPDATE apikeys.keys SET enabled = false WHERE id = '$id{disabled}';
	SELECT apikey_update('$id{narrowed}', '{"permissions": []}');
	SELECT apikey_update('$id{expired}', jsonb_build_object('expires_at', now() - interval '1 hour'));
	SELECT apikey_erase_user('eve');
	SELECT apikey_user_update('mallory', '{"is_disabled": true}')));
is(verify_times($node, 'postgres', $secret{counted}, 200), 200, 'more requests');
is(verify_times($node, 'postgres', $secret{paid}, 50), 50, 'more of credits');
my $once = qq(SELECT code, repeated FROM apikey_verify('$secret{kept}', charges => '{"request_id": "one"}'));
is($node->safe_psql('postgres', $once), 'VALID|f', 'a request that names itself');
is($node->safe_psql('postgres', $once), 'VALID|t', 'and is repeated');
is( code($node, %secret),
	'counted VALID deleted NOT_FOUND disabled DISABLED expired EXPIRED kept VALID'
	  . ' narrowed VALID other VALID owned DISABLED paid VALID regenerated NOT_FOUND',
	'what is revoked is refused');
my $segment = $node->safe_psql('postgres', 'SELECT pg_walfile_name(pg_switch_wal())');
ok( $node->poll_query_until('postgres',
		"SELECT last_archived_wal >= '$segment' FROM pg_stat_archiver"),
	'the WAL is archived');
$elsewhere->wait_for_subscription_sync($node, 'apikeys_elsewhere');

# The other server sees no more of it.
$elsewhere->safe_psql('postgres', 'ALTER SUBSCRIPTION apikeys_elsewhere DISABLE');
$node->stop('immediate');

# ----- The restored server -----

my $restored = PostgreSQL::Test::Cluster->new('restored');
$restored->init_from_backup($node, 'base', has_restoring => 1, standby => 0);
$restored->append_conf(
	'postgresql.conf', q(
	recovery_target_name = 'before'
	recovery_target_action = 'promote'
	archive_mode = off
	wal_writer_delay = 10s));
$restored->start;
ok($restored->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'),
	'a server is restored to the moment before');

is($restored->safe_psql('postgres', 'SELECT count(*) FROM apikeys.requests'), '130',
	'the history is that of the moment');

is($restored->safe_psql('postgres', q(SELECT name FROM apikey_user_get('eve'))), 'Eve',
	'a person who was erased since is there again');

# Not a wish, but what is known: nothing in the database tells.
my %presented = (%secret, new => $new, replacement => $regenerated);
my $all_valid = 'counted VALID deleted VALID disabled VALID expired VALID kept VALID'
  . ' narrowed VALID new NOT_FOUND other VALID owned VALID paid VALID'
  . ' regenerated VALID replacement NOT_FOUND';
is(code($restored, %presented), $all_valid, 'what was revoked since is good again, what was made is not');

# ----- The fence -----

my $session = $restored->background_psql('postgres');
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
my $question = "SELECT code FROM apikey_verify('$secret{deleted}')";
is($session->query_safe($question), 'VALID', 'a session goes on with a revoked key');

is( $restored->safe_psql(
		'postgres', q(
		SET synchronous_commit = off;
		SELECT apikey_fence(api_id => 'default'))),
	'9', 'all keys of an api are fenced');
is($session->query_safe($question), 'DISABLED', 'then it is refused there too');
my $fenced = 'counted DISABLED deleted DISABLED disabled DISABLED expired DISABLED kept DISABLED'
  . ' narrowed DISABLED new NOT_FOUND other VALID owned DISABLED paid DISABLED'
  . ' regenerated DISABLED replacement NOT_FOUND';
is(code($restored, %presented), $fenced, 'as is every secret of the api, and none of another');
$session->quit;
is( $restored->safe_psql('postgres', 'SELECT api_id, keys, deleted_keys FROM apikeys.fences'),
	'default|9|0', 'what is fenced is counted');

# A crash that comes at once, before anything else writes WAL.
$restored->safe_psql('postgres', q(SELECT apikey_unfence(api_id => 'default')));
is(code($restored, %presented), $all_valid, 'lifting the fence undoes it');
$restored->safe_psql(
	'postgres', q(
	SET synchronous_commit = off;
	SELECT apikey_fence(api_id => 'default')));
$restored->kill9;
ok(start_again($restored), 'the server is killed');
is(code($restored, %presented), $fenced, 'the fence is not forgotten');

# And a copy of the database has it.
$restored->safe_psql('postgres', 'CREATE DATABASE copy');
my $dump = PostgreSQL::Test::Utils::tempdir . '/dump';
$restored->command_ok([ 'pg_dump', '-Fc', '-f', $dump, '-d', $restored->connstr('postgres') ], 'pg_dump');
$restored->command_ok([ 'pg_restore', '-d', $restored->connstr('copy'), $dump ], 'pg_restore');
is(verify($restored, 'copy', $secret{kept}), 'DISABLED', 'a dump keeps it');
is(verify($restored, 'copy', $secret{other}), 'VALID', 'and fences nothing else');

# ----- Letting in again -----

# A key that has not changed since is as good as it was: nothing but a change by
# hand or by a function moves its updated_at, a fence included.
my $list = PostgreSQL::Test::Utils::tempdir . '/keys';
$elsewhere->safe_psql('postgres', "COPY apikeys.keys TO '$list.keys'");
$elsewhere->safe_psql('postgres', "COPY apikeys.users TO '$list.users'");
is( $restored->safe_psql(
		'postgres', qq(
		CREATE TEMP TABLE later_keys (id uuid, updated_at timestamptz, enabled boolean, deleted_at timestamptz);
		CREATE TEMP TABLE later_users (id text, updated_at timestamptz, is_disabled boolean, deleted_at timestamptz);
		COPY later_keys FROM '$list.keys';
		COPY later_users FROM '$list.users';
		SELECT apikey_unfence(ARRAY(
			SELECT k.id FROM apikeys.keys k JOIN later_keys l USING (id, updated_at)
			 WHERE l.enabled AND l.deleted_at IS NULL));
		SELECT (apikey_delete(k.id)).name FROM later_keys l JOIN apikeys.keys k USING (id)
		 WHERE l.deleted_at IS NOT NULL AND k.deleted_at IS NULL;
		SELECT (apikey_user_update(u.id, '{"is_disabled": true}')).id
		  FROM later_users l JOIN apikeys.users u USING (id)
		 WHERE (l.is_disabled OR l.deleted_at IS NOT NULL) AND NOT u.is_disabled AND u.deleted_at IS NULL
		 ORDER BY u.id;
		SELECT l.id FROM later_keys l WHERE NOT EXISTS (SELECT FROM apikeys.keys k WHERE k.id = l.id))),
	"4\ndeleted\neve\nmallory\n$new_id",
	'the list tells whose secrets are good, and who and what was revoked or made');
is( code($restored, %presented),
	'counted VALID deleted NOT_FOUND disabled DISABLED expired DISABLED kept VALID'
	  . ' narrowed DISABLED new NOT_FOUND other VALID owned DISABLED paid VALID'
	  . ' regenerated DISABLED replacement NOT_FOUND',
	'those are let in, and the others are not');
my (undef, $again) = split /\|/,
  $restored->safe_psql('postgres', "SELECT id, api_key FROM apikey_regenerate('$id{regenerated}')");
is(verify($restored, 'postgres', $again), 'VALID', 'a new secret is good');
is(verify($restored, 'postgres', $secret{regenerated}), 'NOT_FOUND', 'the old one is not');
is( $restored->safe_psql('postgres', 'SELECT api_id, keys, deleted_keys FROM apikeys.fences'),
	'default|3|1', 'what is left is counted');

# ----- What was used since -----

# Three requests of each were admitted here; the kill may have cost the count of
# those of the last moment.
my $used = usage($restored, 'postgres', $id{counted});
cmp_ok($used, '<=', 103, 'usage is that of the moment');
cmp_ok($used, '>=', 101, 'and what was used here');
is( $restored->safe_psql('postgres',
		"SELECT current_usage FROM apikey_usage_adjust('$id{counted}', 200, 'used before the restore')"),
	$used + 200, 'it can be put right');
my $rest = verify_times($restored, 'postgres', $secret{counted}, 640);
cmp_ok($rest, '<=', 640 - 303, 'then no more is admitted than the limit');
cmp_ok($rest, '>=', 640 - 303 - 2 * 10, 'and little less: a step each for the restore and the kill');
my $balance = $restored->safe_psql('postgres', "SELECT credits FROM apikey_get('$id{paid}')");
cmp_ok($balance, '<=', 970 - 3, 'credits are those of the moment');
cmp_ok($balance, '>=', 970 - 3 - 2 * 16, 'but for what the restore and the kill cost');
is( $restored->safe_psql('postgres', "SELECT apikey_credits('$id{paid}', 'subtract', 50)"),
	$balance - 50, 'they can be put right');
is($restored->safe_psql('postgres', $once), 'VALID|f', 'a request that was charged since is charged again');

$restored->stop;
$elsewhere->stop;
done_testing();
