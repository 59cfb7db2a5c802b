# A full tablespace, and a full disk of the WAL: no limit is exceeded, service
# is back soon after there is space, and history that was lost is counted.
#
# APIKEYS_SMALL_DISK is a file system of some 48 MB to fill; ./dev mounts one if
# it is root. APIKEYS_FULL_DISKS is how often the tablespace and how often the
# WAL's disk is filled: "10 20" in the long form. The server is killed over each
# second full tablespace. The figures go to
# APIKEYS_FIGURES, if it is set.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use Errno;
use File::Path;
use IPC::Run;
use LedgerTest;
use List::Util qw(max sum0);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $disk = $ENV{APIKEYS_SMALL_DISK};
plan skip_all =>
  'no small file system in APIKEYS_SMALL_DISK; ./dev mounts one if it is root'
  unless $disk;
my ($tablespaces, $wals) = split ' ', $ENV{APIKEYS_FULL_DISKS} // '2 1';
my $dir = PostgreSQL::Test::Utils::tempdir;
my $slowest = 0;
my @secrets;

# Fills the disk, but for so many bytes.
sub fill
{
	my ($leave) = @_;
	my $block = 'x' x 4096;
	my $size = 0;
	open my $ballast, '>>', "$disk/ballast" or die "ballast: $!";
	while (defined(my $written = syswrite $ballast, $block))
	{
		$size += $written;
		die "$disk is not small" if $size > 256 * 1024 * 1024;
	}
	die "ballast: $!" unless $!{ENOSPC};
	truncate $ballast, max(0, (-s $ballast) - $leave) or die "ballast: $!";
	close $ballast;
	return;
}

sub make_space
{
	unlink "$disk/ballast" or die "ballast: $!";
	return;
}

# The outcome of a verification by a server that may not answer: then nothing.
sub ask
{
	my ($server, $database, $secret) = @_;
	my ($stdout) = run_command(
		[
			'psql', '-XAtq', '-d', $server->connstr($database), '-c',
			"SELECT code FROM apikey_verify('$secret')"
		]);
	return $stdout // '';
}

# No part of a secret is in the server's log, 6 characters in a row or more.
sub is_not_logged
{
	my ($node, @secrets) = @_;
	my $log = slurp_file($node->logfile);
	my %piece;
	foreach my $secret (@secrets)
	{
		my $random = substr $secret, rindex($secret, '_') + 1;
		$piece{ substr $random, $_, 6 } = 1 foreach 0 .. length($random) - 6;
	}
	my $found = 0;
	foreach my $run ($log =~ /([A-Za-z0-9]{6,})/g)
	{
		$found += grep { $piece{ substr $run, $_, 6 } } 0 .. length($run) - 6;
	}
	is($found, 0, 'no secret is in the log');
	return $found;
}

# ----- A full tablespace -----

mkdir "$disk/space" or die "$disk/space: $!";
my $node = new_server(
	'main',
	'max_connections' => '25',
	'apikeys.flush_interval' => '100ms',
	'apikeys.history_buffer' => '1MB',
	'apikeys.history_wait_timeout' => '50ms',
	'apikeys.meter_timeout' => '60s');
$node->start;
$node->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$disk/space'");
$node->safe_psql('postgres', 'CREATE DATABASE small TABLESPACE small');
install($node, 'small');
$node->safe_psql('small',
	"SELECT apikey_plan_create('Plan', $_, 'year', plan_id => 'p$_')")
  foreach 20, 1280;

sub stats
{
	return {
		map { split /\|/ } split /\n/,
		$node->safe_psql('small', 'SELECT name, value FROM apikeys.stats')
	};
}

# Where the disk is full nobody shall wait long for what cannot be written; at
# any other time a machine that stalls is no refusal.
sub set_meter_timeout
{
	my ($timeout) = @_;
	$node->append_conf('postgresql.conf', "apikeys.meter_timeout = '$timeout'");
	$node->reload;
	$node->poll_query_until('postgres', 'SHOW apikeys.meter_timeout', $timeout)
	  or die "meter_timeout is not $timeout";
	return;
}

my $clients = 4;
my ($dropped, $failed, $above, $uncounted) = (0, 0, 0, 0);
foreach my $n (1 .. $tablespaces)
{
	# Each small key needs a row that is not there yet.
	my @keys = map {
		my ($secret, $limit) = split /\|/;
		+{ secret => $secret, limit => $limit, told => 0 }
	  }
	  split /\n/,
	  $node->safe_psql(
		'small', q(
		SELECT api_key, nullif(substr(plan, 2), '')::int
		  FROM unnest(array_fill('p20'::text, '{100}') || '{p1280,p1280,NULL,NULL}') plan,
			   LATERAL apikey_create('key', plan_id => plan)));
	push @secrets, map { $_->{secret} } @keys;
	my @some = @keys[ 0, -1, -3 ];
	my $before = stats();
	my $rows = $node->safe_psql('small', 'SELECT count(*) FROM apikeys.requests');

	# The meter is open: without a worker no quota and no history would be
	# kept, and nothing be admitted.
	$_->{told} += verify_times($node, 'small', $_->{secret}, 1) foreach @some;
	my $recorded = @some;

	set_meter_timeout('100ms');
	fill(0);
	my @runs;
	foreach my $client (1 .. $clients)
	{
		# Small quotas by turns, and requests with much to record.
		my @lines;
		my $endpoint = '/' . 'e' x 1000;
		foreach my $line (1 .. 600)
		{
			my $k = $line % 30 == 0 ? ($line / 30 + 20 * $client) % 100
			  : $line % 50 == 1 ? 100 + $client % 2
			  :                   102 + $client % 2;
			push @lines,
			  "SELECT $k, code FROM apikey_verify('$keys[$k]{secret}', '$endpoint')";
		}
		unlink glob "$dir/client$client.*";
		append_to_file("$dir/client$client.sql", join '', map { "$_;\n" } @lines);
		push @runs, IPC::Run::start(
			[
				'psql', '-XAtq', '-d', $node->connstr('small'), '-f',
				"$dir/client$client.sql"
			],
			'<', \undef,
			'>', "$dir/client$client.ledger",
			'2>', "$dir/client$client.err");
	}
	$_->finish foreach @runs;
	set_meter_timeout('1min');
	my $errors = 0;
	my $answers = 0;
	foreach my $client (1 .. $clients)
	{
		foreach (slurp_file("$dir/client$client.ledger") =~ /^(\d+\|[A-Z_]+)$/mg)
		{
			my ($k, $code) = split /\|/;
			$keys[$k]{told}++ if $code eq 'VALID';
			$answers++;
		}
		my $stderr = slurp_file("$dir/client$client.err");
		$errors += () = $stderr =~ /the meter could not admit/g;
		unlike($stderr, qr/ERROR:  (?!the meter)|FATAL|PANIC/, 'no other error than that');
	}
	$recorded += $answers;
	is($answers + $errors, $clients * 600, 'each request has its answer');
	my $after = stats();
	cmp_ok($after->{flush_failures}, '>', $before->{flush_failures},
		'the worker could not write');
	cmp_ok($after->{history_dropped}, '>', $before->{history_dropped},
		'history was lost');
	cmp_ok($errors, '>', 0, 'and quotas without a ceiling were not admitted');
	cmp_ok((sum0 map { $_->{told} } @keys[ 102, 103 ]),
		'>', 0, 'keys without a limit were');

	$dropped += $after->{history_dropped} - $before->{history_dropped};
	$failed += $errors;

	# What the worker could not write must be allowed for after a crash, too.
	my $is_killed = $n % 2 == 0;
	$node->kill9 if $is_killed;
	make_space();
	my $began = time;
	ok(start_again($node), 'the server starts again') if $is_killed;
	foreach my $key (@some)
	{
		my $secret = $key->{secret};
		ok( until_true(
				sub {
					my $code = ask($node, 'small', $secret);
					$recorded++ if $code;
					$key->{told}++ if $code eq 'VALID';
					return $code;
				}),
			'it is served again');
	}
	my $took = time - $began;
	$slowest = max($slowest, $took);
	cmp_ok($took, '<=', 10, 'soon after there is space');

	my $wrong = 0;
	my @limited = grep { $_->{limit} } @keys;
	my @rest = split /\n/, $node->safe_psql(
		'small',
		join ';',
		map {
			"SELECT count(*) FILTER (WHERE (apikey_verify('$_->{secret}')).valid)"
			  . " FROM generate_series(1, $_->{limit} + 1)"
		} @limited);
	is(@rest, @limited, 'what is left of all quotas is used up');
	foreach my $key (@limited)
	{
		my $limit = $key->{limit};
		my $total = $key->{told} + shift @rest;
		my $lost = $is_killed ? max(1, $limit / 64) : 0;
		$recorded += $limit + 1;
		$above += max(0, $total - $limit);
		$wrong++ if $total > $limit || $total < $limit - $lost;
	}
	is($wrong, 0, 'each limit was admitted, no more and hardly less');

	# Without a crash every record is accounted for.
	my $found = sub {
		return $node->safe_psql('small', 'SELECT count(*) FROM apikeys.requests') -
		  $rows + stats()->{history_dropped} - $before->{history_dropped};
	};
	if (!$is_killed)
	{
		ok(until_true(sub { $found->() >= $recorded }), 'all is written or counted');
		is($found->(), $recorded, 'each request is in the history or counted as lost');
		$uncounted += abs($found->() - $recorded);
	}
	ok( $node->poll_query_until(
			'small', q(
			SELECT value = 0 FROM apikeys.stats WHERE name = 'rollup_pending')),
		'the worker has caught up');
	$node->safe_psql('small', 'TRUNCATE apikeys.requests');
}
is($above, 0, 'a full tablespace let no more in than a limit');
my $logged = is_not_logged($node, @secrets);
like(slurp_file($node->logfile), qr/No space left on device/, 'which tells why');
my $slowest_tablespace = $slowest;
$node->stop;
rmtree("$disk/space");

# ----- A full disk of the WAL -----

# A slot keeps all of it, as one that was forgotten would.
$node = new_server(
	'wal',
	-initdb => [ '--wal-segsize=1', '-X', "$disk/wal" ],
	'max_connections' => '25',
	'max_wal_senders' => '2',
	'wal_level' => 'replica',
	'min_wal_size' => '2MB',
	'max_wal_size' => '4MB',
	'restart_after_crash' => 'on',
	'apikeys.flush_interval' => '100ms');
$node->start;
install($node);
$node->safe_psql('postgres',
	q(SELECT apikey_plan_create('Plan', 20, 'year', plan_id => 'probe')));
my $ledger = LedgerTest->new;
$slowest = 0;
@secrets = ();

sub panics
{
	return scalar(() = slurp_file($node->logfile) =~ /PANIC: /g);
}

foreach my $n (1 .. $wals)
{
	$node->safe_psql('postgres',
		q(SELECT pg_create_physical_replication_slot('forgotten', true)));
	my $before = panics();
	my ($id, $secret) = issue($node, 'postgres', q('probe', plan_id => 'probe'));
	$ledger->begin($node);
	fill(int rand 2 * 1024 * 1024);
	push @secrets, map { $_->{secret} } @{ $ledger->{keys} };
	$ledger->end;
	my $died = panics() - $before;
	cmp_ok($died, '>', 0, 'a full disk of the WAL ends the server');

	make_space();
	my $began = time;
	ok( until_true(
			sub {
				$node->{_pid} = undef
				  unless -e $node->data_dir . '/postmaster.pid';
				return 0
				  unless $node->{_pid} || $node->start(fail_ok => 1);
				return ask($node, 'postgres', $secret) eq 'VALID';
			}),
		'it is served again');
	my $took = time - $began;
	$slowest = max($slowest, $took);
	cmp_ok($took, '<=', 10, 'soon after there is space');

	$ledger->settle($node, "full WAL no. $n", panics() - $before);
	$node->safe_psql('postgres',
		q(SELECT pg_drop_replication_slot('forgotten'); CHECKPOINT));
	$node->safe_psql('postgres', 'CHECKPOINT');
}
$ledger->check('full disk of the WAL');
$logged += is_not_logged($node, @secrets);

if ($ENV{APIKEYS_FIGURES})
{
	my $figure = $ledger->{figure};
	append_to_file(
		$ENV{APIKEYS_FIGURES},
		sprintf "6|full tablespace %d times, the server killed over every second: %d requests failed (53000), %d records of history dropped"
		  . "|admitted above a limit %d; quota lost 0, or a step by the kill; records neither written nor counted %d;"
		  . " served %.1f s after there was space at most\n",
		$tablespaces, $failed, $dropped, $above, $uncounted,
		$slowest_tablespace);
	append_to_file(
		$ENV{APIKEYS_FIGURES},
		sprintf "6|full disk of the WAL %d times under load;"
		  . " %d answers, %d creations and %d revocations acknowledged"
		  . "|admitted above a limit %d; lost at most %.3f steps a key a crash (limit 20: %d requests);"
		  . " billed beyond what was told at most %d (answers under way: up to %d);"
		  . " creations lost %d, revocations forgotten %d;"
		  . " served %.1f s after there was space at most; secrets in the log %d\n",
		@$figure{
			'rounds', 'told', 'created', 'revoked', 'above', 'lost',
			'lost_small', 'overbilled'
		},
		$ledger->{verifiers}, @$figure{ 'created_lost', 'revoked_lost' },
		$slowest, $logged);
}

$node->stop;
done_testing();
