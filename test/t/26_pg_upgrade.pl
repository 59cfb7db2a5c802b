# pg_upgrade keeps everything: each row, all that the catalogs say, and what is
# left of every quota, rate and balance.
#
# APIKEYS_UPGRADE_CHAIN names the folders of the installations to go through,
# separated by colons; without it, the server under test is upgraded to itself.
# The figures go to APIKEYS_FIGURES, if it is set.

use strict;
use warnings FATAL => 'all';

use Cwd qw(getcwd);
use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RichData;
use Test::More;
use UpgradeTest;

my @chain = split /:/, $ENV{APIKEYS_UPGRADE_CHAIN} // '';
@chain = (undef, undef) unless @chain;

# The differences of all steps, and how much was compared in the last one.
my (%figures, @versions);
my $number = 0;

# A server of that installation, not started. The log says which background
# workers there are.
sub new_link
{
	my ($path) = @_;
	my $node = PostgreSQL::Test::Cluster->new('link' . ++$number,
		defined $path ? (install_path => $path) : ());
	my $pg_config = defined $path ? "$path/bin/pg_config" : 'pg_config';
	my $bindir = `$pg_config --bindir`;
	my $version = `$pg_config --version`;

	chomp $bindir;
	my ($major) = $version =~ /(\d+)/;
	$node->init(
		extra => [
			'--no-locale', '-E', 'UTF8',
			$major >= 18 ? '--no-data-checksums' : ()
		]);
	$node->append_conf('postgresql.conf', q(
apikeys.flush_interval = '200ms'
apikeys.last_used_interval = '1s'
apikeys.meter_timeout = '30s'
apikeys.sweep_interval = '1s'
jit = off
log_statement = 'none'
log_min_messages = debug1));
	return { node => $node, bindir => $bindir, major => $major };
}

sub preload
{
	my ($link) = @_;
	$link->{node}->append_conf('postgresql.conf', "shared_preload_libraries = 'apikeys'");
	return;
}

# Which of our background workers a log tells of.
sub workers
{
	my @files = @_;
	return scalar grep { /background worker "apikeys/ } map { split /\n/, slurp_file($_) } @files;
}

# What the catalogs say, with the grants that fill() has made.
sub fresh_catalog
{
	my ($node, $number) = @_;
	my $database = "fresh$number";

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	install($node, $database);
	$node->safe_psql($database, q(
		SELECT apikey_grant('web', 'verifier');
		SELECT apikey_grant('monitor', 'viewer');
		GRANT SELECT ON apikeys.stats TO monitor;
		GRANT EXECUTE ON FUNCTION apikeys.statistics() TO monitor;
		REVOKE EXECUTE ON FUNCTION apikey_settle(uuid, bigint) FROM web;
		COMMENT ON EXTENSION apikeys IS 'a comment of our own'));
	return catalog($node, $database);
}

# The history's partitions, of which catalog() says nothing, and their indexes.
sub partitions
{
	my ($node) = @_;
	return $node->safe_psql('source', q(
		SELECT c.relname, pg_get_userbyid(c.relowner), c.relacl, pg_get_expr(c.relpartbound, c.oid),
		       array(SELECT pg_get_indexdef(x.indexrelid) FROM pg_index x
		              WHERE x.indrelid = c.oid ORDER BY 1)
		  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		 WHERE i.inhparent = 'apikeys.requests'::regclass ORDER BY 1));
}

# ----- The first of them -----

my $old = new_link($chain[0]);
plan skip_all => "no pg_upgrade in $old->{bindir}" unless -x "$old->{bindir}/pg_upgrade";
preload($old);
$old->{node}->start;
push @versions, $old->{major};
ok(workers($old->{node}->logfile), 'the log tells of background workers');
$old->{node}->safe_psql('postgres', 'CREATE DATABASE source');
install($old->{node}, 'source');
my $rich = fill($old->{node}, 'source');
$rich->{spend} = 100;
same_catalog(fresh_catalog($old->{node}, 0), catalog($old->{node}, 'source'),
	'a fresh catalog is as that of the source');

# ----- Step by step -----

foreach my $step (1 .. $#chain)
{
	my $new = new_link($chain[$step]);
	my $name = "$old->{major} to $new->{major}";
	my $dir = PostgreSQL::Test::Utils::tempdir;

	# In the midst of things: part of a quota is held when the server stops.
	my $held = hold($old->{node}, 'source', $rich);
	come_to_rest($old->{node}, 'source', $rich);
	my $quotas = quotas($old->{node}, 'source');
	my $partitions = partitions($old->{node});
	close_meter($old->{node}, 'source');
	my $contents = contents($old->{node}, 'source');
	$old->{node}->stop('fast');

	# The last step goes by links, the others by copies.
	my @upgrade = (
		"$new->{bindir}/pg_upgrade", '-U', scalar getpwuid($>),
		'-b', $old->{bindir}, '-B', $new->{bindir},
		'-d', $old->{node}->data_dir, '-D', $new->{node}->data_dir,
		'-p', $old->{node}->port, '-P', $new->{node}->port,
		'-s', $new->{node}->host, $step == $#chain && $step > 1 ? '--link' : ());
	my $cwd = getcwd;
	chdir $dir;
	if ($step == 1)
	{
		$new->{node}->command_checks_all([ @upgrade, '--check' ],
			1, [qr/Checking for presence of required libraries +fatal/], [],
			"without the library in shared_preload_libraries it refuses ($name)");
	}
	preload($new);
	$new->{node}->command_ok([ @upgrade, '--check' ], "pg_upgrade --check ($name)");
	$new->{node}->command_ok([ @upgrade, '--retain' ], "pg_upgrade ($name)");
	chdir $cwd;
	my @logs = grep { -f } map { glob "$_/pg_upgrade_output.d/*/log/pg_upgrade_server.log" } $new->{node}->data_dir;
	ok((grep { slurp_file($_) =~ /DEBUG: / } @logs), "there are logs of its servers ($name)");
	my $workers = workers(@logs);
	is($workers, 0, "no background worker of ours has run in them ($name)");

	$new->{node}->start;
	push @versions, $new->{major};
	is($new->{node}->safe_psql('source', q(SELECT current_setting('server_version_num')::int / 10000)),
		$new->{major}, "it runs ($name)");
	my $after = contents($new->{node}, 'source');
	my $rows = same_contents($contents, $after, "every row is as it was ($name)");
	is(partitions($new->{node}), $partitions, "so are the partitions of the history ($name)");
	my $fresh = fresh_catalog($new->{node}, $step);
	my $upgraded = catalog($new->{node}, 'source');
	same_catalog($fresh, $upgraded, "so are the catalogs: as of a fresh installation ($name)");
	my $wrong = same_contents($quotas, quotas($new->{node}, 'source'),
		"quotas, rates, balances are equal ($name)");

	$figures{workers} += $workers;
	$figures{rows} += $rows;
	$figures{facts} += differences($fresh, $upgraded);
	$figures{quotas} += $wrong;
	$figures{of_rows} = keys %{ $after->{rows} };
	$figures{of_facts} = keys %$fresh;
	$figures{of_quotas} = keys %{ $quotas->{rows} };

	$rich->{spend} = undef if $step == $#chain;
	my $made = goes_on($new->{node}, 'source', $rich, $held, $name);
	$new->{node}->safe_psql('source', "SELECT apikey_delete('$made')");
	ok(workers($new->{node}->logfile), "a worker runs after the upgrade ($name)");
	$old = $new;
}
$old->{node}->stop;

if ($ENV{APIKEYS_FIGURES})
{
	append_to_file(
		$ENV{APIKEYS_FIGURES},
		sprintf "4|pg_upgrade %s, with a quota in mid-period, reservations held and history"
		  . "|%d differences in either direction in %d rows, %d in %d facts of the catalogs (against a fresh"
		  . " installation); %d of %d quotas differ; %d background workers meanwhile; %s\n",
		join(' → ', @versions),
		@figures{qw(rows of_rows facts of_facts quotas of_quotas workers)},
		Test::More->builder->is_passing ? 'creation works' : 'with failed tests');
}
done_testing();
