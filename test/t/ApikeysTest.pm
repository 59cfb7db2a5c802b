# What the TAP tests share: servers with the library preloaded, and the
# questions they keep asking.

package ApikeysTest;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(new_server install issue verify verify_times usage flushed
  start_again until_true codes race);

# A server, not started. Settings are given by name; -initdb are more arguments
# of initdb.
sub new_server
{
	my ($name, %settings) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	my $arguments = delete $settings{-initdb} // [];
	$node->init(extra => [ '--no-locale', '-E', 'UTF8', @$arguments ]);
	%settings = (
		'shared_preload_libraries' => 'apikeys',
		'apikeys.flush_interval' => '200ms',

		# Where the machine stalls, a wait is not yet a fault.
		'apikeys.meter_timeout' => '30s',

		# A secret in a test's own statement is no leak.
		'log_statement' => 'none',
		%settings);
	$node->append_conf('postgresql.conf', "$_ = '$settings{$_}'")
	  foreach sort keys %settings;
	return $node;
}

sub install
{
	my ($node, @databases) = @_;
	@databases = ('postgres') unless @databases;
	$node->safe_psql(
		$_, q(
		SET client_min_messages = warning;
		CREATE EXTENSION apikeys CASCADE)) foreach @databases;
	return;
}

# Makes a key; the arguments are those of apikey_create, as SQL.
sub issue
{
	my ($node, $database, $arguments) = @_;
	return split /\|/,
	  $node->safe_psql($database,
		"SELECT id, api_key FROM apikey_create($arguments)");
}

# The outcome of one verification.
sub verify
{
	my ($node, $database, $secret) = @_;
	return $node->safe_psql($database,
		"SELECT code FROM apikey_verify('$secret')");
}

# How many of so many verifications, in one statement, were valid. (In FROM,
# with nothing that changes from row to row, it would be called but once.)
sub verify_times
{
	my ($node, $database, $secret, $times) = @_;
	return $node->safe_psql(
		$database, qq(
		SELECT count(*) FILTER (WHERE (apikey_verify('$secret')).valid)
		  FROM generate_series(1, $times)));
}

sub usage
{
	my ($node, $database, $id) = @_;
	return $node->safe_psql($database,
		"SELECT current_usage FROM apikey_usage('$id')");
}

# Waits until what was verified is in the history, in so many rows.
sub flushed
{
	my ($node, $database, $rows) = @_;
	return $node->poll_query_until($database,
		"SELECT count(*) = $rows FROM apikeys.requests");
}

# Polls for what SQL cannot see; the time limit is that of poll_query_until.
sub until_true
{
	my ($condition) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	while (!$condition->())
	{
		return 0 if time > $deadline;
		usleep(10_000);
	}
	return 1;
}

# Starts a server that was killed. Its last processes may still be leaving;
# then the start fails, and takes the old pid file for a running server.
sub start_again
{
	my ($node) = @_;
	return until_true(
		sub {
			return 1 if $node->start(fail_ok => 1);
			$node->{_pid} = undef;
			return 0;
		});
}

# Which outcomes the lines of a file tell, and how often.
sub codes
{
	my %codes;
	foreach my $file (@_)
	{
		next unless -e $file;
		$codes{$_}++ foreach slurp_file($file) =~ /^([A-Z_]+)$/mg;
	}
	return \%codes;
}

# Runs the scripts, a client each, all at the same moment; what a client is
# told goes to its script's name with .out. Tests that none has failed.
sub race
{
	my ($node, $name, @scripts) = @_;
	my $clients = @scripts;
	my $gate = $node->background_psql('postgres');
	$gate->query_safe('SELECT pg_advisory_lock(1)');
	my @runs = map {
		IPC::Run::start(
			[
				'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d',
				$node->connstr('postgres'), '-c',
				'SELECT FROM pg_advisory_lock_shared(1)', '-f', $_
			],
			'<', \undef, '>', "$_.out", '2>', "$_.err")
	} @scripts;
	ok( $node->poll_query_until(
			'postgres', qq(
			SELECT count(*) = $clients FROM pg_locks
			 WHERE locktype = 'advisory' AND NOT granted)),
		"$clients clients are waiting ($name)");
	$gate->query_safe('SELECT pg_advisory_unlock(1)');
	my $failed = grep { !$_->finish } @runs;
	is($failed, 0, "all clients came to their end ($name)");
	$gate->quit;
	return;
}

1;
