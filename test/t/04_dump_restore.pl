# What pg_dump takes, a restore brings back: every row as it was, with no
# trigger changing one, and no secret in the dump. The dumps are of a meter that
# is open, and of one that is closed. The figures go to APIKEYS_FIGURES, if it
# is set.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RichData;
use Test::More;
use UpgradeTest;

my $node = new_server(
	'main',
	'apikeys.last_used_interval' => '1s',
	'apikeys.sweep_interval' => '1s',

	# A meter that is open stays so, however long the dumps take.
	'apikeys.worker_idle_timeout' => '1h');
$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE source');
install($node, 'source');
my $rich = fill($node, 'source');
come_to_rest($node, 'source', $rich);

my $dir = PostgreSQL::Test::Utils::tempdir;
my %options = (
	plain => ['-Fp'],
	custom => [ '-Fc', '-Z0' ],
	directory => [ '-Fd', '-Z0', '-j2' ]);
my $number = 0;

# The file or folder of a new dump.
sub dumped
{
	my ($database, $format) = @_;
	my $dump = "$dir/" . ++$number . ".$format";

	$node->command_ok(
		[
			'pg_dump', @{ $options{$format} }, '--no-sync', '-f', $dump,
			$node->connstr($database)
		],
		"pg_dump of $database, $format");
	return $dump;
}

# Restores it in a new database, with not a word said.
sub restored
{
	my ($database, $dump, $format) = @_;
	my @command =
	  $format eq 'plain'
	  ? ('psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-f', $dump)
	  : ('pg_restore', $format eq 'directory' ? '-j2' : (), '--exit-on-error', $dump);

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->command_checks_all([ @command, '-d', $node->connstr($database) ],
		0, [], [qr/^$/], "$database is restored without a word");
	return;
}

# The lines of a plain dump, but for what is new in each.
sub lines
{
	my ($database) = @_;
	my %lines;

	$lines{$_}++ foreach grep { !/^(\\(un)?restrict |-- |$)/ } split /\n/, slurp_file(dumped($database, 'plain'));
	return { rows => \%lines };
}

my %figures = (differences => 0, rows => 0, restores => 0);

# Compares a database with what its source was, both ways.
sub compare
{
	my ($database, $contents, $catalog, $was_open, $name) = @_;
	my @differences = differences($catalog, catalog($node, $database));

	$figures{differences} += same_contents($contents,
		contents($node, $database, $was_open), "every row is as it was ($name)");
	same_catalog($catalog, catalog($node, $database), "so are the catalogs ($name)");
	$figures{differences} += @differences;
	$figures{rows} = keys %{ $contents->{rows} };
	$figures{restores}++;
	return;
}

# ----- While the meter is open -----

my $contents = contents($node, 'source', 1);
my $catalog = catalog($node, 'source');
foreach my $table (grep { !/requests_\d|_marks$|rollup_journal$/ } @{ $contents->{tables} })
{
	ok((grep { /^\Q$table\E / } keys %{ $contents->{rows} }), "the source has rows in $table");
}

# Of each quota, what is left of it.
sub remaining
{
	my ($database) = @_;
	return { map { split /=/ } split /\n/, $node->safe_psql(
			$database, q(
			SELECT format('%s=%s', k.name, u.remaining) FROM apikeys.keys k, apikey_usage(k.id) u
			 WHERE u."limit" IS NOT NULL AND k.deleted_at IS NULL)) };
}

my $quotas = quotas($node, 'source', 1);
my $left = remaining('source');
my $step = 6400 / 64;
my $less = 0;
foreach my $format (qw(custom directory))
{
	my $database = "open_$format";
	my $dump = dumped('source', $format);

	is_deeply(contents($node, 'source', 1), $contents, 'the source did not change meanwhile');
	restored($database, $dump, $format);
	compare($database, $contents, $catalog, 1, $database);

	# It cannot know what was admitted up to the ceilings.
	my $left_there = remaining($database);
	is(join(' ', sort keys %$left_there), join(' ', sort keys %$left), "the same quotas ($database)");
	foreach my $name (sort keys %$left)
	{
		my $lost = $left->{$name} - $left_there->{$name};
		ok($lost >= 0 && $lost <= $step, "at most a step is lost of $name: $lost ($database)");
		$less = $lost if $lost > $less;
	}
	my @changed = grep { !/^\S+ (key|user) / } only_in_one($quotas, quotas($node, $database, 1));
	is("@changed", '', "balances are as they were ($database)");
	goes_on($node, $database, $rich, undef, $database);
}

# ----- While it is closed -----

my $held = hold($node, 'source', $rich);
come_to_rest($node, 'source', $rich);
$quotas = quotas($node, 'source');
close_meter($node, 'source');
my $differences = same_contents($quotas, quotas($node, 'source'), 'closed, it says the same of all quotas');
$contents = contents($node, 'source');
foreach my $table (grep { !/requests_\d|rollup_journal$/ } @{ $contents->{tables} })
{
	ok((grep { /^\Q$table\E / } keys %{ $contents->{rows} }), "the closed source has rows in $table");
}
my $lines = lines('source');
my $quota_rows = keys %{ $quotas->{rows} };
foreach my $format (qw(plain custom directory))
{
	my $database = "closed_$format";
	my $dump = dumped('source', $format);

	# A dump holds what can be recognised of a secret, never the secret.
	my $text = join '', map { slurp_file($_) } -d $dump ? glob("$dump/*") : $dump;
	foreach my $name (sort keys %{ $rich->{secret} })
	{
		my ($random) = $rich->{secret}{$name} =~ /_([0-9A-Za-z]{38})$/;
		ok($random, "$name has a secret");
		is(index($text, $random), -1, "it is not in the dump ($format)");
	}

	restored($database, $dump, $format);
	compare($database, $contents, $catalog, 0, $database);
	$figures{differences} += same_contents($lines, lines($database),
		"and dumped again it gives the same dump ($database)");
	$differences += same_contents($quotas, quotas($node, $database),
		"quotas, rates and balances are equal ($database)");
	my $new = goes_on($node, $database, $rich, $held, $database);

	$node->safe_psql($database, "SELECT apikey_delete('$new'); SELECT apikey_purge('0')");
	is( $node->safe_psql($database, "SELECT count(*) FROM apikeys.keys WHERE name = 'new'"),
		'0', "a key can be deleted and purged ($database)");
}

# ----- Data alone -----

# Into a new installation, which has no partition for the days of the history:
# the dump must name the table as a whole.
my $data = "$dir/data.dump";
$node->command_ok(
	[
		'pg_dump', '-Fc', '--data-only', '--load-via-partition-root', '--no-sync', '-f', $data,
		$node->connstr('source')
	],
	'pg_dump of the data alone');
$node->safe_psql('postgres', 'CREATE DATABASE data_alone');
install($node, 'data_alone');
$node->command_checks_all([ 'pg_restore', '--data-only', '--exit-on-error', $data, '-d', $node->connstr('data_alone') ],
	0, [], [qr/^$/], 'it is restored without a word');

# Rows, in whichever partition.
sub whole
{
	my ($rows) = $_[0]->{rows};
	my %whole;

	$whole{ s/^apikeys\.requests_(default|\d\S+) /apikeys.requests /r } += $rows->{$_} foreach keys %$rows;
	return { rows => \%whole };
}
$figures{differences} += same_contents(whole($contents), whole(contents($node, 'data_alone')), 'every row is as it was (data alone)');
$differences += same_contents($quotas, quotas($node, 'data_alone'), 'quotas, rates and balances are equal (data alone)');
goes_on($node, 'data_alone', $rich, $held, 'data_alone');

is_deeply(contents($node, 'source'), $contents, 'the source is as it was');
goes_on($node, 'source', $rich, $held, 'the source');

# ----- Who checks no references -----

$node->safe_psql('source', q(
	CREATE ROLE writer;
	GRANT USAGE ON SCHEMA apikeys TO writer;
	GRANT ALL ON apikeys.users TO writer;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA apikeys TO writer));
my $loading = 'SET check_function_bodies = off; SET row_security = off';
my $users = "COPY apikeys.users (id, plan_id) FROM stdin;\nnew\tno such plan\n\\.\n";
my $refused = qr/violates foreign key constraint "users_plan_id_fkey"/;
my %sessions = (
	'an ordinary session' => [ '', $users, $refused ],
	'no more than checks of bodies off' => [ 'SET check_function_bodies = off', $users, $refused ],
	'one who is no superuser' => [ "$loading; SET ROLE writer", $users, $refused ],
	'an INSERT' => [ $loading, "INSERT INTO apikeys.users (id, plan_id) VALUES ('new', 'no such plan');", $refused ],
	'a COPY after one' => [ "$loading; COPY apikeys.incarnations FROM '/dev/null'; RESET row_security", $users, $refused ],
	'a session that loads a dump' => [ $loading, $users, qr/^$/ ]);
foreach my $session (sort keys %sessions)
{
	my ($settings, $statement, $answer) = @{ $sessions{$session} };
	my (undef, undef, $error) =
	  $node->psql('source', "BEGIN; $settings;\n$statement\nROLLBACK;", on_error_stop => 0);
	like($error, $answer, "references: $session");
}

if ($ENV{APIKEYS_FIGURES})
{
	append_to_file(
		$ENV{APIKEYS_FIGURES},
		sprintf "4|dump (plain, custom, directory with `-j 2`) and restore, %d times"
		  . "|%d differences in either direction in %d rows and the catalogs; quotas, rates and balances"
		  . " dumped from a closed meter: %d of %d differ; from an open one at most %d of 6400 less;"
		  . " %s\n",
		$figures{restores}, $figures{differences}, $figures{rows}, $differences, $quota_rows, $less,
		Test::More->builder->is_passing ? 'creation works' : 'with failed tests');
}
$node->stop;
done_testing();
