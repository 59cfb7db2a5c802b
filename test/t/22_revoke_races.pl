# A verification that starts after a revoke was acknowledged is refused: in
# sessions of all kinds, while they verify without pause, however the key was
# revoked.
#
# APIKEYS_RACES is how many verifications after a revoke there shall be, 100000
# in the long form. The figures go to APIKEYS_FIGURES, if it is set.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $races = $ENV{APIKEYS_RACES} // 5_000;
my $node = new_server(
	'main',
	'max_prepared_transactions' => '5',
	'apikeys.history_overflow' => 'drop');
$node->start;
install($node);
my $dir = PostgreSQL::Test::Utils::tempdir;
my $connection = $node->connstr('postgres');

$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION revoke_in_subtransaction(uuid) RETURNS void LANGUAGE plpgsql
	AS $$
	BEGIN
		BEGIN
			UPDATE apikeys.keys SET enabled = false WHERE id = $1;
		EXCEPTION WHEN OTHERS THEN
			RAISE;
		END;
	END $$));

# How a key is revoked: %1$s is its id, %2$d its number, %3$s its user.
my @ways = (
	q(SELECT id FROM apikey_delete('%1$s')),
	q(DELETE FROM apikeys.keys WHERE id = '%1$s'),
	q(UPDATE apikeys.keys SET enabled = false WHERE id = '%1$s'),
	q(UPDATE apikeys.keys SET expires_at = '2001-01-01' WHERE id = '%1$s'),
	q(SELECT id FROM apikey_regenerate('%1$s')),
	q(SELECT apikey_fence('%3$s')),
	q(UPDATE apikeys.users SET is_disabled = true WHERE id = '%3$s'),
	q(SELECT id FROM apikey_user_delete('%3$s')),
	q(SELECT revoke_in_subtransaction('%1$s')),
	q(BEGIN;
	UPDATE apikeys.keys SET enabled = false WHERE id = '%1$s';
	PREPARE TRANSACTION 'revoke %2$d';
	COMMIT PREPARED 'revoke %2$d'),
	q(BEGIN;
	UPDATE apikeys.users SET is_disabled = true WHERE id = '%3$s';
	PREPARE TRANSACTION 'revoke %2$d';
	COMMIT PREPARED 'revoke %2$d'));

# Who verifies: each goes round all keys, and tells of each verification when
# it started, by a value that it needs.
my $one = q(
	SELECT k.n, k.t, v.valid
	  FROM (SELECT %s::int AS n, extract(epoch FROM clock_timestamp())::text AS t OFFSET 0) k,
	       LATERAL apikey_verify(%s, k.t) v);
my $many = q(
	SELECT k.n, k.t, v.valid
	  FROM (SELECT i %% cardinality(s.secrets) AS n, s.secrets[1 + i %% cardinality(s.secrets)] AS secret,
	               extract(epoch FROM clock_timestamp())::text AS t
	          FROM generate_series(0, %d) i, secrets s OFFSET 0) k,
	       LATERAL apikey_verify(k.secret, k.t) v);
my %transaction = (
	'autocommit' => undef,
	'READ COMMITTED' => 'BEGIN ISOLATION LEVEL READ COMMITTED',
	'REPEATABLE READ' => 'BEGIN ISOLATION LEVEL REPEATABLE READ',
	'READ ONLY' => 'BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY',
	'one statement' => undef);

my %after;
my $accepted = 0;
my $total = 0;
my $round = 0;
my %valid_before;
my $began = time;

while ($round == 0 || $total < $races)
{
	$round++;
	my $keys = 10 * @ways;
	my @issued = map { [ split /\|/ ] }
	  split /\n/,
	  $node->safe_psql(
		'postgres', qq(
		SET client_min_messages = warning;
		DROP TABLE IF EXISTS secrets;
		INSERT INTO apikeys.users (id) SELECT 'user $round.' || i FROM generate_series(1, $keys) i;
		CREATE TABLE issued AS
		SELECT i, c.id, c.api_key
		  FROM generate_series(1, $keys) i,
		       LATERAL apikey_create('key', 'user $round.' || i) c;
		CREATE TABLE secrets AS SELECT array_agg(api_key ORDER BY i) AS secrets FROM issued;
		SELECT i, id, api_key FROM issued ORDER BY i;
		DROP TABLE issued));

	my %runs;
	foreach my $kind (sort keys %transaction)
	{
		my $file = "$dir/$kind.sql";
		my $turns = $kind eq 'one statement' ? 1 : 40;
		unlink $file, "$dir/$kind.out";
		append_to_file($file, "$transaction{$kind};\n") if $transaction{$kind};
		foreach my $turn (1 .. $turns)
		{
			append_to_file(
				$file,
				$kind eq 'one statement'
				? sprintf("$many;\n", 40 * $keys - 1)
				: join '',
				map { sprintf("$one;\n", $_->[0] - 1, "'$_->[2]'") } @issued);
		}
		local $ENV{PGAPPNAME} = $kind;
		$runs{$kind} = IPC::Run::start(
			[
				'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $connection,
				'-f', $file, '-o', "$dir/$kind.out"
			],
			'<', \undef, '>', '/dev/null', '2>', "$dir/$kind.err");
	}

	# The revokes, each told of when its commit was acknowledged.
	unlink "$dir/revoke.sql", "$dir/revoke.out";
	my $clients = keys %transaction;
	append_to_file(
		"$dir/revoke.sql", qq(
		SET synchronous_commit = off;\n));
	foreach my $key (@issued)
	{
		my ($n, $id) = @$key;
		my $way = $ways[ ($n - 1) % @ways ];
		append_to_file("$dir/revoke.sql",
			sprintf("\\o /dev/null\n$way;\n\\o $dir/revoke.out.$n\n", $id, $n, "user $round.$n")
			  . "SELECT 'ack', $n - 1, extract(epoch FROM clock_timestamp());\n");
		unlink "$dir/revoke.out.$n";
	}

	# One that is fast may have come to its end.
	my %begun;
	ok( until_true(
			sub {
				$begun{$_} = 1 foreach split /\n/, $node->safe_psql('postgres',
					q(SELECT application_name FROM pg_stat_activity WHERE query ~ 'LATERAL apikey_verify'));
				return !grep { !$begun{$_} && !-s "$dir/$_.out" } keys %transaction;
			}),
		"all are verifying (round $round)") if $round == 1;
	command_ok_quietly('psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $connection,
		'-f', "$dir/revoke.sql");

	my $finished = grep { $runs{$_}->finish } keys %runs;
	is($finished, $clients, "all have verified to the end (round $round)")
	  or diag map { slurp_file("$dir/$_.err") } keys %runs;

	my %acknowledged;
	foreach my $key (@issued)
	{
		my ($n) = @$key;
		slurp_file("$dir/revoke.out.$n") =~ /^ack\|(\d+)\|(.*)$/m
		  or die 'a revoke has failed';
		$acknowledged{$1} = $2;
	}
	foreach my $kind (sort keys %transaction)
	{
		foreach (split /\n/, slurp_file("$dir/$kind.out"))
		{
			my ($n, $time, $valid) = split /\|/;
			if ($time <= $acknowledged{$n})
			{
				$valid_before{$kind}++ if $valid eq 't';
				next;
			}
			$total++;
			$after{$kind}++;
			next unless $valid eq 't';
			$accepted++;
			diag "accepted in $kind: $ways[$n % @ways]" if $accepted < 10;
		}
	}
}

sub command_ok_quietly
{
	my (@command) = @_;
	my $ok = IPC::Run::run(\@command, '<', \undef, '>', \my $out, '2>', \my $err);
	die $err unless $ok;
	return;
}

is($accepted, 0, 'no verification that started after a revoke was acknowledged is accepted');
cmp_ok($total, '>=', $races, "there were enough: $total");

# In a short run, one kind may be over before the revokes begin.
my $least = $ENV{APIKEYS_FIGURES} ? keys %transaction : 1;
cmp_ok(scalar keys %after, '>=', $least, 'after the revoke: ' . join ', ', sort keys %after);
cmp_ok(scalar keys %valid_before, '>=', $least, 'and before it, accepted: ' . join ', ', sort keys %valid_before);
if ($ENV{APIKEYS_FIGURES})
{
	append_to_file(
		$ENV{APIKEYS_FIGURES},
		sprintf "2|%d verifications started after a revoke was acknowledged (%s; %d ways to revoke, two-phase commit included; %.0f s)"
		  . "|%d accepted\n",
		$total, join(', ', map { "$_ $after{$_}" } sort keys %after),
		scalar @ways, time - $began, $accepted);
}
$node->stop;
done_testing();
