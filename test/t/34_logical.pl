# Logical replication of keys and of what decides about them, to a server that
# verifies, too: what is revoked, deleted or purged is so there, and nothing
# stops the subscription.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = new_server(
	'publisher',
	'wal_level' => 'logical',
	'max_wal_senders' => '5',
	'max_replication_slots' => '5');
my $subscriber = new_server('subscriber');
$_->start, install($_) foreach $publisher, $subscriber;

sub publish
{
	my ($statements) = @_;
	$publisher->safe_psql('postgres', $statements);
	return;
}

$publisher->safe_psql(
	'postgres', q(
	SELECT apikey_plan_create('Plan', plan_id => 'plan');
	SELECT apikey_user_create('alice');
	SELECT apikey_role_create('reader', '{docs.read}')));
my %arguments = (
	kept => q('kept'),
	updated => q('updated'),
	deleted => q('deleted'),
	old => q('old'),
	planned => q('planned', plan_id => 'plan'),
	owned => q('owned', 'alice'));
my (%id, %secret);
($id{$_}, $secret{$_}) = issue($publisher, 'postgres', $arguments{$_}) foreach sort keys %arguments;
publish(
	q(CREATE PUBLICATION keys FOR TABLE apikeys.apis, apikeys.plans, apikeys.users,
		apikeys.roles, apikeys.keys, apikeys.limits));
$subscriber->safe_psql('postgres',
	'CREATE SUBSCRIPTION keys CONNECTION $$' . $publisher->connstr('postgres') . '$$ PUBLICATION keys');
$subscriber->wait_for_subscription_sync($publisher, 'keys');

# One session asks, which remembers plans and users.
my $session = $subscriber->background_psql('postgres');

sub answers
{
	my ($expected, $name) = @_;
	my $query = join ' UNION ALL ',
	  map { "SELECT '$_' AS n, code FROM apikey_verify('$secret{$_}')" } sort keys %secret;

	$publisher->wait_for_catchup('keys');
	is($session->query_safe("SELECT string_agg(n || ' ' || code, ' ' ORDER BY n) FROM ($query) s"),
		$expected, $name);
	return;
}

answers('deleted VALID kept VALID old VALID owned VALID planned VALID updated VALID',
	'keys that were there are good');

publish("SELECT apikey_delete('$id{old}')");
answers('deleted VALID kept VALID old NOT_FOUND owned VALID planned VALID updated VALID', 'one is deleted');

publish("DELETE FROM apikeys.keys WHERE id = '$id{deleted}'");
answers('deleted NOT_FOUND kept VALID old NOT_FOUND owned VALID planned VALID updated VALID',
	'one is deleted by DELETE');

publish(
	qq(SELECT apikey_update('$id{updated}', '{"enabled": false}');
	SELECT apikey_user_update('alice', '{"is_disabled": true}');
	DELETE FROM apikeys.plans WHERE id = 'plan'));
answers('deleted NOT_FOUND kept VALID old NOT_FOUND owned DISABLED planned DISABLED updated DISABLED',
	'a key and a user are disabled, a plan is deleted');

publish("SELECT apikey_limit_set('calls', 1, '300 days', key_id => '$id{kept}')");
my $limited = "SELECT code FROM apikey_verify('$secret{kept}')";
$publisher->wait_for_catchup('keys');
$session->query_safe($limited);
is($session->query_safe($limited), 'RATE_LIMITED', 'a rate is set');
publish("SELECT apikey_limit_delete('calls', key_id => '$id{kept}')");
$publisher->wait_for_catchup('keys');
is($session->query_safe($limited), 'VALID', 'and deleted');

my $rows = q(SELECT count(*), count(deleted_at) FROM apikeys.keys);
is($subscriber->safe_psql('postgres', $rows), '6|2', 'what is deleted is marked');
publish("SELECT apikey_purge('0')");
$publisher->wait_for_catchup('keys');
is($subscriber->safe_psql('postgres', $rows), $publisher->safe_psql('postgres', $rows), 'and purged');
is($subscriber->safe_psql('postgres', $rows), '4|0', '... for good');

# A role that is not there yet does not keep revocations from coming.
publish(
	qq(CREATE ROLE web;
	SELECT apikey_plan_create('Web', plan_id => 'web');
	SELECT apikey_plan_update('web', '{"http_role": "web"}');
	SELECT apikey_delete('$id{updated}')));
$publisher->wait_for_catchup('keys');
is($subscriber->safe_psql('postgres', q(SELECT http_role FROM apikeys.plans WHERE id = 'web')), 'web', 'an http_role');
is($subscriber->safe_psql('postgres', $rows), '4|1', 'and a deletion after it');

# Who is no subscription still only marks, and is held to roles that exist.
$subscriber->safe_psql('postgres', "DELETE FROM apikeys.keys WHERE id = '$id{kept}'");
is($subscriber->safe_psql('postgres', $rows), '4|2', 'a DELETE on the subscriber marks');
my (undef, undef, $refused) = $subscriber->psql('postgres',
	q(SET session_replication_role = replica; UPDATE apikeys.plans SET http_role = 'nobody'));
like($refused, qr/role "nobody" does not exist/, 'an http_role must be there');
$session->quit;

unlike(slurp_file($subscriber->logfile), qr/ERROR:(?!.*role "nobody")/, 'the subscription has not failed');
$publisher->stop;
$subscriber->stop;
done_testing();
