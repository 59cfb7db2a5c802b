# A database with something of everything that the extension keeps, and the
# questions that tell whether a copy of it has lost anything.

package RichData;

use strict;
use warnings FATAL => 'all';

use ApikeysTest;
use Exporter 'import';
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(fill come_to_rest hold close_meter contents quotas
  only_in_one same_contents goes_on);

# What each secret is answered, where nothing is asked for (cost => 0).
my %outcome = (
	plain => 'VALID',
	planned => 'VALID',
	shared => 'VALID',
	second => 'DISABLED',
	networks => 'FORBIDDEN',
	disabled => 'DISABLED',
	gone => 'DISABLED',
	deleted => 'NOT_FOUND',
	restored => 'VALID',
	revoked => 'NOT_FOUND',
	erased => 'NOT_FOUND',
	expired => 'EXPIRED',
	regenerated => 'VALID',
	paid => 'VALID',
	refilled => 'VALID',
	spender => 'VALID',
	weekly => 'VALID');

# Requests that are in the time series.
my $rollups = q(SELECT coalesce(sum(requests), 0) FROM apikeys.rollups WHERE step = 'day');

# Balances by the name of the key or user, the same as long as nobody spends.
my $balances = q(SELECT string_agg(format('%s %s', id, credits), ' ' ORDER BY id)
	FROM (SELECT name AS id, credits FROM apikeys.key_objects
	      UNION ALL SELECT id, credits FROM apikeys.user_objects) s
	WHERE credits IS NOT NULL);

sub _expect_secrets
{
	my ($node, $database, $rich, $label) = @_;
	my ($query, $expected) = ('', '');

	foreach my $name (sort keys %outcome)
	{
		$query .= "SELECT '$name', code FROM apikey_verify('$rich->{secret}{$name}', cost => 0);\n";
		$expected .= "$name|$outcome{$name}\n";
	}
	is($node->safe_psql($database, $query) . "\n",
		$expected, "every secret is answered as it should be ($label)");
	return;
}

# Makes the rows, in a database that has the extension. Returns what the other
# functions ask for: ids and secrets by name.
sub fill
{
	my ($node, $database) = @_;
	my (%id, %secret);

	$node->safe_psql(
		$database, q(
		CREATE ROLE web;
		CREATE ROLE monitor;
		SELECT apikey_plan_create('Plan', 6400, 'year', plan_id => 'plan',
			description => 'a plan', metadata => '{"tier": 1}',
			key_lifetime => '30 days', max_keys_per_user => 7,
			http_role => 'web');
		SELECT apikey_plan_create('Unlimited', -1, plan_id => 'unlimited');
		SELECT apikey_plan_create('Weekly', 1000, 'week', plan_id => 'weekly');
		SELECT apikey_plan_create('Off', 10, 'day', plan_id => 'off', is_active => false);
		SELECT apikey_plan_create('Gone', 10, 'month', plan_id => 'gone');
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
		SELECT apikey_user_create('mallory', 'Mallory', 'mallory@example.com');
		SELECT apikey_role_create('writer', '{docs.*,audit.read}', 'Writes');
		SELECT apikey_role_create('none');
		UPDATE apikeys.users SET is_disabled = true WHERE id = 'bob';
		INSERT INTO apikeys.apis (id, name, default_prefix, default_plan_id, http_role)
			VALUES ('second', 'Second', 'sk_live', 'unlimited', 'web');
		SELECT apikey_limit_set('tokens', 900, '900 days', auto_apply => false, plan_id => 'plan');
		SELECT apikey_limit_set('tokens', 90, '900 days', auto_apply => false, user_id => 'alice');

		SELECT apikey_grant('web', 'verifier');
		SELECT apikey_grant('monitor', 'viewer');
		GRANT SELECT ON apikeys.stats TO monitor;
		GRANT EXECUTE ON FUNCTION apikeys.statistics() TO monitor;
		REVOKE EXECUTE ON FUNCTION apikey_settle(uuid, bigint) FROM web;
		COMMENT ON EXTENSION apikeys IS 'a comment of our own'));

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
		restored => q('restored', 'ivan'),
		revoked => q('revoked', 'judy'),
		erased => q('erased', 'mallory'),
		expired => q('expired', expires_at => clock_timestamp() + '1 second'),
		regenerated => q('regenerated', expires_at => '2999-12-31'),
		paid => q('paid', credits => 100),
		refilled => q('refilled', credits => 20, refill_amount => 10,
			refill_every => '1 hour'),
		spender => q('spender', 'erin'),
		weekly => q('weekly', plan_id => 'weekly'),
		rated => q('rated'));
	foreach my $name (sort keys %arguments)
	{
		($id{$name}, $secret{$name}) = issue($node, $database, $arguments{$name});
	}
	my (undef, $regenerated) = split /\|/,
	  $node->safe_psql($database,
		"SELECT id, api_key FROM apikey_regenerate('$id{regenerated}', '10 years')");
	$node->safe_psql($database,
		"SELECT apikey_limit_set('calls', 4, '400 days', key_id => '$id{rated}')");

	my %times = (plain => 5, planned => 70, shared => 9, regenerated => 3,
		paid => 7, refilled => 15, spender => 4, weekly => 33, rated => 4,
		erased => 2);
	foreach my $name (sort keys %times)
	{
		is(verify_times($node, $database, $secret{$name}, $times{$name}),
			$times{$name}, "$name is used");
	}
	$node->safe_psql(
		$database, qq(
		SELECT code FROM apikey_verify('$secret{shared}', '/a', 'GET', '192.0.2.7',
		                               tags => '{"one, two", "three"}');
		SELECT code FROM apikey_verify('$secret{shared}', charges => '{"tokens": 30}');
		SELECT code FROM apikey_verify('$secret{plain}', charges => '{"request_id": "a request"}');
		SELECT code FROM apikey_verify('$secret{erased}', ip_address => '192.0.2.8');
		DELETE FROM apikeys.keys WHERE id = '$id{deleted}';
		SELECT apikey_delete('$id{restored}');
		SELECT apikey_restore('$id{restored}');
		SELECT apikey_revoke('judy');
		SELECT apikey_erase_user('mallory');
		DELETE FROM apikeys.plans WHERE id = 'gone';
		DELETE FROM apikeys.users WHERE id = 'carol'));
	is(verify($node, $database, $secret{gone}), 'DISABLED', 'plan deleted');
	is(verify($node, $database, $secret{rated}), 'RATE_LIMITED', 'a rate is used up');
	ok( $node->poll_query_until(
			$database,
			"SELECT expires_at <= clock_timestamp() FROM apikeys.keys WHERE id = '$id{expired}'"
		),
		'a key expires');
	is(verify($node, $database, $secret{expired}), 'EXPIRED', 'expired');

	# A refill has come, and more was granted; a balance was given up, and a
	# count corrected. A period is over.
	$node->safe_psql(
		$database, qq(
		SET session_replication_role = replica;
		UPDATE apikeys.keys SET refill_since = clock_timestamp() - interval '90 minutes'
		 WHERE id = '$id{refilled}';
		RESET session_replication_role;
		SELECT apikey_credits('$id{paid}', 'add', 11);
		SELECT apikey_user_credits('frank', 'set', NULL);
		SELECT apikey_usage_adjust('$id{paid}', 2, 'a correction')));
	is(verify($node, $database, $secret{refilled}), 'VALID', 'a refill');
	is($node->safe_psql($database, $balances),
		'carol 3 erin 46 paid 104 refilled 9', 'balances');
	$node->safe_psql(
		$database, q(
		INSERT INTO apikeys.usage
		SELECT subject_id, subject, period, period_start - interval '1 year', 12, 13,
		       13, incarnation, updated_at
		  FROM apikeys.usage WHERE period = 'year'));

	# Dated partitions: the worker has made them, tomorrow's too.
	ok( $node->poll_query_until(
			$database, q(
			SELECT count(*) > 3 FROM pg_inherits
			 WHERE inhparent = 'apikeys.requests'::regclass)),
		'there are dated partitions');
	$node->safe_psql(
		$database, qq(
		INSERT INTO apikeys.requests (timestamp, key_id, status, code, cost)
		VALUES (now() + interval '1 day', '$id{plain}', 'allowed', 'VALID', 1),
		       (now() - interval '1 day', '$id{plain}', 'denied', 'FORBIDDEN', 1)));
	is( $node->safe_psql(
			$database, q(
			SELECT count(DISTINCT tableoid) FROM apikeys.requests)),
		'3',
		'history in dated partitions and in the other');

	return {
		id => \%id,
		secret => \%secret,
		regenerated => $regenerated,
		written => 2 };
}

# Waits until the worker has written all that is to be written while the meter
# is open.
sub come_to_rest
{
	my ($node, $database, $rich) = @_;
	ok( $node->poll_query_until(
			$database, qq(
			SELECT count(*) > 100
			       AND count(*) FILTER (WHERE code NOT IN ('SETTLED', 'RELEASED'))
			           - $rich->{written} = ($rollups)
			       AND NOT EXISTS (SELECT FROM apikeys.rollup_journal)
			       AND (SELECT count(last_used_at) FROM apikeys.keys) >= 10
			       AND (SELECT bool_and(noticed_at IS NOT NULL) FROM apikeys.erasures)
			  FROM apikeys.requests)),
		'history, rollups and times of use are written');
	ok( $node->poll_query_until(
			$database, q(
			SELECT count(*) > 0
			       AND bool_and((m.current_usage, m.charged, m.ceiling)
			                    IS NOT DISTINCT FROM (u.current_usage, u.charged, u.ceiling))
			       AND bool_and(m.charged = m.ceiling OR m.period <> 'credits')
			  FROM apikeys.meter() m
			  LEFT JOIN apikeys.usage u USING (subject_id, period, period_start))),
		'the counts are written')
	  or diag($node->safe_psql($database, q(
			SELECT m, u FROM apikeys.meter() m
			  LEFT JOIN apikeys.usage u USING (subject_id, period, period_start))));
	return;
}

# Holds part of two quotas and of a balance. Returns the reservations, by name.
sub hold
{
	my ($node, $database, $rich) = @_;
	my %held;

	foreach my $name (qw(planned paid))
	{
		$held{$name} = $node->safe_psql($database,
			"SELECT reservation_id FROM apikey_reserve('$rich->{secret}{$name}', 6, '10 hours')");
		ok($held{$name}, "something is held by $name");
	}
	return \%held;
}

# Has the worker leave, which closes the meter: nothing changes then.
sub close_meter
{
	my ($node, $database) = @_;

	$node->safe_psql(
		'postgres', qq(
		SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
		 WHERE backend_type = 'apikeys worker' AND datname = '$database'));
	is( $node->safe_psql(
			$database,
			'SELECT count(*) FROM apikeys.incarnations WHERE closed_at IS NULL'),
		'0', 'the meter is closed');
	return;
}

# Every row of every table there is, partitions by their own names.
#
# A meter that was not closed is taken for crashed at any time after a restore;
# then that is left out.
sub contents
{
	my ($node, $database, $was_open) = @_;
	my @tables = split /\n/, $node->safe_psql(
		$database, q(
		SELECT c.oid::regclass FROM pg_class c
		 WHERE c.relnamespace = 'apikeys'::regnamespace AND c.relkind = 'r' ORDER BY 1));
	my @rows = split /\n/, $node->safe_psql(
		$database,
		join "\nUNION ALL ",
		map {
			my $row = 'to_jsonb(t)';
			$row .= " - 'superseded_at'" if $was_open && $_ eq 'apikeys.incarnations';
			"SELECT format('%s %s', '$_', $row) FROM $_ t"
		} @tables);
	my %rows;

	$rows{$_}++ foreach @rows;
	my @twice = grep { $rows{$_} > 1 && !/^apikeys\.requests/ } sort keys %rows;
	die "two rows are the same: @twice" if @twice;
	return { tables => \@tables, rows => \%rows };
}

# What remains to every key and user, of quotas, rates and credits, with the
# times at which they begin anew: a row each. Without rates, if they are not
# asked for: those of a crash are used up.
sub quotas
{
	my ($node, $database, $no_rates) = @_;
	my $limits = $no_rates ? "- 'limits'" : '';
	my %rows;

	foreach my $row (
		split /\n/, $node->safe_psql(
			$database, qq(
			SELECT format('key %s %s', k.name, to_jsonb(u) $limits)
			  FROM apikeys.keys k, apikey_usage(k.id) u
			UNION ALL
			SELECT format('user %s %s', o.id, to_jsonb(u) $limits)
			  FROM apikeys.users o, apikey_user_usage(o.id) u
			UNION ALL
			SELECT format('balances %s', ($balances)))))
	{
		# A rate that is full has no other time than now.
		$row =~ s/("kind": "rate", "name": "\w+", "limit": (\d+), "refused": false, "remaining": \2, "reset_time": )"[^"]*"/$1null/g;
		$rows{$row}++;
	}
	return { rows => \%rows };
}

# The rows that one has and the other has not, or more often: in words.
sub only_in_one
{
	my ($one, $other) = map { $_->{rows} } @_;
	my %both = (%$one, %$other);
	my @differences;

	foreach my $row (sort keys %both)
	{
		my $more = ($one->{$row} // 0) - ($other->{$row} // 0);
		push @differences, ($more > 0 ? 'lost: ' : 'new: ') . $row if $more != 0;
	}
	return @differences;
}

# Tests that there is none. Returns how many there are.
sub same_contents
{
	my ($one, $other, $name) = @_;
	my @differences = only_in_one($one, $other);

	cmp_ok(scalar(keys %{ $one->{rows} }), '>', 10, "there is something to compare: $name");
	ok(!@differences, $name) or diag(join "\n", @differences);
	return scalar @differences;
}

# Tests that the database is in use as before: old secrets, counts that go on
# to their limits, new keys, new history. What was held is settled.
sub goes_on
{
	my ($node, $database, $rich, $held, $label) = @_;
	my ($id, $secret) = ($rich->{id}, $rich->{secret});
	my $history = $node->safe_psql($database, 'SELECT count(*) FROM apikeys.requests');
	my $counted = $node->safe_psql($database, $rollups);
	my $requests = 0;

	if ($held)
	{
		foreach my $name (sort keys %$held)
		{
			my $before = usage($node, $database, $id->{$name});
			is( $node->safe_psql($database,
					"SELECT current_usage FROM apikey_settle('$held->{$name}', 2)"),
				$before - 4, "what $name held is settled ($label)");
			$requests++;
			$counted--;    # it is no request of its own
		}
	}
	_expect_secrets($node, $database, $rich, $label);
	is(verify($node, $database, $rich->{regenerated}),
		'VALID', "the secret after a regeneration is valid ($label)");
	is(verify($node, $database, $secret->{rated}),
		'RATE_LIMITED', "a rate is still used up ($label)");
	$requests += 2;
	is( $node->safe_psql(
			$database,
			"SELECT repeated FROM apikey_verify('$secret->{plain}', charges => '{\"request_id\": \"a request\"}')"),
		't', "a request that was charged is not charged again ($label)");
	$requests++;

	foreach my $name (qw(planned shared))
	{
		my $before = usage($node, $database, $id->{$name});
		cmp_ok($before, '>', 0, "$name has been used ($label)");
		is(verify($node, $database, $secret->{$name}), 'VALID', "$name is used again ($label)");
		is(usage($node, $database, $id->{$name}), $before + 1, "its count goes on ($label)");
		$requests++;
	}

	# What remains is what is admitted, to the last request.
	my $spent = $node->safe_psql($database, "SELECT remaining FROM apikey_usage('$id->{weekly}')");
	my $take = $rich->{spend} // $spent;
	cmp_ok($spent, '>=', $take, "something remains ($label)");
	is( $node->safe_psql($database,
			"SELECT remaining FROM apikey_verify('$secret->{weekly}', cost => $take)"),
		$spent - $take, "a quota is spent ($label)");
	$requests++;
	if ($spent == $take)
	{
		is(verify($node, $database, $secret->{weekly}),
			'USAGE_EXCEEDED', "and no more than that ($label)");
		$requests++;
	}

	my ($new, $new_secret) = issue($node, $database, q('new', 'alice'));
	is(verify($node, $database, $new_secret), 'VALID', "a new key can be made ($label)");
	$requests++;
	is( usage($node, $database, $new),
		usage($node, $database, $id->{shared}),
		"and shares its user's count ($label)");

	ok(flushed($node, $database, $history + $requests), "history goes on ($label)");
	ok( $node->poll_query_until($database, "SELECT ($rollups) = $counted + $requests"),
		"and so do the rollups ($label)");
	return $new;
}

1;
