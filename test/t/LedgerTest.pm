# Clients under whom a server fails. They keep a ledger on disk of what they
# were told, against which the server that goes on is held.
#
#	my $ledger = LedgerTest->new;
#	$ledger->begin($node);			# keys, and clients at work on them
#	...								# the server fails
#	$ledger->end;					# the clients have come to their end
#	$ledger->settle($node, 'name');	# what is left is used up and compared
#
# The figures of all rounds are in $ledger->{figure}.

package LedgerTest;

use strict;
use warnings FATAL => 'all';

use ApikeysTest;
use IPC::Run;
use List::Util qw(max sum0);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# The keys of a round: how many there are of each plan, and its limit. Each
# crash can cost a step of a quota, a 64th; of a small one nothing.
my %plan = (
	wide => { limit => 32_000, keys => 2 },
	middle => { limit => 6_400, keys => 2 },
	small => { limit => 20, keys => 6 });

sub new
{
	my ($class, %options) = @_;
	my $self = {
		verifiers => 3,
		managers => 1,
		figure => {
			rounds => 0,
			told => 0,
			above => 0,			# requests admitted beyond limits, all keys
			lost => 0,			# steps of one key
			lost_small => 0,	# requests of one small key
			overbilled => 0,	# requests of one key
			created => 0,
			created_lost => 0,
			revoked => 0,
			revoked_lost => 0
		},
		must_be_valid => {},
		must_be_refused => {},
		dir => PostgreSQL::Test::Utils::tempdir,
		%options
	};
	return bless $self, $class;
}

sub rows
{
	my ($node, $query) = @_;
	return map { [ split /\|/ ] } split /\n/, $node->safe_psql('postgres', $query);
}

sub start_client
{
	my ($self, $node, $name, @lines) = @_;
	my $file = "$self->{dir}/$name";
	unlink glob "$file.*";
	append_to_file("$file.sql", join '', map { "$_;\n" } @lines);
	return IPC::Run::start(
		[
			'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d',
			$node->connstr('postgres'), '-f', "$file.sql"
		],
		'<', \undef, '>', "$file.ledger", '2>', "$file.err");
}

sub ledger
{
	my ($self, $kind) = @_;
	return join '',
	  map { -e $_ ? slurp_file($_) : '' } glob "$self->{dir}/$kind*.ledger";
}

# Makes the keys of a round, and starts the clients: some verify, the others
# create keys and revoke some.
sub begin
{
	my ($self, $node) = @_;
	$self->{figure}{rounds}++;

	$node->safe_psql('postgres',
		"SELECT apikey_plan_create('Plan', $plan{$_}{limit}, 'year', plan_id => '$_')"
		  . " WHERE NOT EXISTS (SELECT FROM apikeys.plans WHERE id = '$_')")
	  foreach sort keys %plan;
	my @keys;
	foreach my $name (sort keys %plan)
	{
		my $limit = $plan{$name}{limit};
		push @keys, map {
			{
				plan => $name,
				id => $_->[0],
				secret => $_->[1],
				limit => $limit,
				step => max(1, $limit / 64)
			}
		} rows($node,
			"SELECT id, api_key FROM generate_series(1, $plan{$name}{keys}) i,"
			  . " LATERAL apikey_create('key ' || i, plan_id => '$name')");
	}
	$self->{keys} = \@keys;
	my @small = grep { $keys[$_]{step} == 1 } 0 .. $#keys;
	my @large = grep { $keys[$_]{step} > 1 } 0 .. $#keys;
	my @victims =
	  rows($node,
		q(SELECT id, api_key FROM generate_series(1, 1500) i, LATERAL apikey_create('victim ' || i)));
	$self->{secret_of} = { map { @$_ } @victims };

	$self->{clients} = [];
	foreach my $client (1 .. $self->{verifiers})
	{
		push @{ $self->{clients} }, $self->start_client(
			$node,
			"verifier$client",
			map {
				my @from = $_ % 100 == 0 ? @small : @large;
				my $n = $from[ int rand @from ];
				"SELECT $n, code FROM apikey_verify('$keys[$n]{secret}')"
			} 1 .. 20_000);
	}
	foreach my $client (1 .. $self->{managers})
	{
		my @lines = ('SET synchronous_commit = off');
		foreach my $n (0 .. 1499)
		{
			next unless $n % $self->{managers} == $client - 1;
			my $victim = $victims[$n][0];
			push @lines, (
				"SELECT 'created', api_key, '' FROM apikey_create('made')",
				(
					"SELECT 'revoked', id, '' FROM apikey_delete('$victim')",
					"WITH u AS (UPDATE apikeys.keys SET enabled = false WHERE id = '$victim' RETURNING id)"
					  . " SELECT 'revoked', id, '' FROM u",
					"SELECT 'regenerated', id, api_key FROM apikey_regenerate('$victim')",
					"WITH u AS (DELETE FROM apikeys.keys WHERE id = '$victim' RETURNING id)"
					  . " SELECT 'revoked', id, '' FROM u")[ $n % 4 ]);
		}
		push @{ $self->{clients} }, $self->start_client($node, "manager$client", @lines);
	}
	ok( until_true(sub {
			(() = $self->ledger('verifier') =~ /\|VALID$/mg) > 300
			  && (() = $self->ledger('manager') =~ /\n/g) > 10;
		}),
		'clients are at work');
	return;
}

# Waits for the clients, which end with the server.
sub end
{
	my ($self) = @_;
	eval { $_->finish } foreach @{ $self->{clients} };
	$self->{clients} = [];
	return;
}

# How many of the secrets are valid.
sub valid
{
	my ($node, @secrets) = @_;
	return 0 unless @secrets;
	my $values = join ', ', map { "('$_')" } @secrets;
	return $node->safe_psql(
		'postgres', qq(
		SELECT count(*) FILTER (WHERE v.valid)
		  FROM (VALUES $values) k(secret), LATERAL apikey_verify(k.secret) v));
}

sub at_least
{
	my ($self, $name, $value) = @_;
	$self->{figure}{$name} = max($self->{figure}{$name}, $value);
	return;
}

# Uses up what is left of the round's keys, and compares. So many crashes have
# cost each key a step.
sub settle
{
	my ($self, $node, $name, $crashes) = @_;
	my $figure = $self->{figure};
	my $ledger = $self->ledger('verifier');
	my %told;
	$told{$_}++ foreach $ledger =~ /^(\d+)\|VALID$/mg;
	cmp_ok(sum0(values %told), '>', 300, "there was a load ($name)");
	$figure->{told} += sum0(values %told);

	my $above = 0;
	foreach my $n (0 .. $#{ $self->{keys} })
	{
		my $key = $self->{keys}[$n];
		my $heard = $told{$n} // 0;
		my $billed = usage($node, 'postgres', $key->{id});
		my $total = $heard +
		  verify_times($node, 'postgres', $key->{secret}, $key->{limit} + 1);

		# Clients were cut off from an answer: each may have been admitted
		# once without being told.
		my $lost = $key->{limit} - $total;
		$above += max(0, -$lost);
		if ($key->{step} > 1)
		{
			$self->at_least('lost',
				($lost - $self->{verifiers}) / $key->{step} / ($crashes || 1));
		}
		else
		{
			$self->at_least('lost_small', $lost);
		}
		$self->at_least('overbilled', $billed - $heard);
	}
	$figure->{above} += $above;

	my ($created, $revoked) = (0, 0);
	foreach (split /\n/, $self->ledger('manager'))
	{
		my ($what, $which, $new) = split /\|/, $_, -1;
		next unless defined $new;
		if ($what eq 'created')
		{
			$self->{must_be_valid}{$which} = 1;
			$created++;
			next;
		}
		$self->{must_be_refused}{ $self->{secret_of}{$which} } = 1;
		$self->{must_be_valid}{$new} = 1 if $what eq 'regenerated';
		$revoked++;
	}
	cmp_ok($created + $revoked, '>', 0, "keys were made and revoked ($name)");
	my $good = $self->{must_be_valid};
	my $bad = $self->{must_be_refused};
	my $created_lost = keys(%$good) - valid($node, keys %$good);
	my $revoked_lost = valid($node, keys %$bad);
	note "$name: told @{[ sum0(values %told) ]}, above $above, created $created,"
	  . " lost $created_lost, revoked $revoked, forgotten $revoked_lost";
	$figure->{created} += $created;
	$figure->{revoked} += $revoked;
	if ($self->{forgetful})
	{
		# What is lost stays lost.
		$figure->{created_lost} += $created_lost;
		$figure->{revoked_lost} += $revoked_lost;
		%$good = %$bad = ();
		return;
	}
	$self->at_least('created_lost', $created_lost);
	$self->at_least('revoked_lost', $revoked_lost);
	return;
}

# What must hold whenever nothing that was acknowledged is lost.
sub check
{
	my ($self, $what) = @_;
	my $figure = $self->{figure};
	is($figure->{above}, 0, "no $what let more in than a limit");
	cmp_ok($figure->{lost}, '<=', 1, "a $what cost a key a step at most");
	cmp_ok($figure->{lost_small}, '<=', 1 + $self->{verifiers},
		'and a small quota hardly more');
	cmp_ok($figure->{overbilled}, '<=', $self->{verifiers},
		'nobody is billed for more than was admitted');
	is($figure->{created_lost}, 0, 'what was created verifies');
	is($figure->{revoked_lost}, 0, 'what was revoked stays so');
	note join ', ', map { "$_ $figure->{$_}" } sort keys %$figure;
	return;
}

1;
