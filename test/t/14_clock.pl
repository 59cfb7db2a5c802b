# A wall clock that jumps by a day, ahead and back, while the server runs and
# between its runs: no limit is exceeded, no key is locked out, nothing hangs
# and nothing stops.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use ClockTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

plan skip_all => 'the clock of clock.c is for Linux' if $^O ne 'linux';

my $node = new_server(
	'main',
	'apikeys.flush_interval' => '50ms',
	'apikeys.sweep_interval' => '1s',
	'apikeys.expired_key_grace' => '0',
	'apikeys.meter_timeout' => '60s');
my $day = 24 * 60 * 60;

sub sql
{
	my ($query) = @_;
	return $node->safe_psql('postgres', $query);
}

sub is_ahead_by
{
	my ($days, $name) = @_;
	return is( sql(sprintf 'SELECT round((extract(epoch FROM clock_timestamp()) - %f) / 86400)', time),
		$days, "the clock: $name");
}

# Whether a key comes to be verified, within the time of a poll.
sub recovers
{
	my ($secret) = @_;
	return until_true(sub { verify($node, 'postgres', $secret) eq 'VALID' });
}

# Whether the worker goes on: what is verified now gets to the tables.
my $unlimited;
my $marks = 0;

sub flushes
{
	my ($name) = @_;
	my $endpoint = 'mark ' . ++$marks;

	sql("SELECT code FROM apikey_verify('$unlimited', '$endpoint')");
	ok( $node->poll_query_until(
			'postgres',
			"SELECT count(*) = 1 FROM apikeys.requests WHERE endpoint = '$endpoint'"
		),
		"history is flushed $name");
	return;
}

sub sweeps
{
	my ($name) = @_;
	my ($id) = issue($node, 'postgres', q('to sweep'));

	sql("UPDATE apikeys.keys SET expires_at = '2001-01-01' WHERE id = '$id'");
	ok( $node->poll_query_until(
			'postgres',
			"SELECT deleted_at IS NOT NULL FROM apikeys.keys WHERE id = '$id'"),
		"keys are swept $name");
	return;
}

sub written
{
	my ($secret, $times, $id) = @_;

	verify_times($node, 'postgres', $secret, $times);
	return $node->poll_query_until('postgres',
		"SELECT sum(current_usage) = $times FROM apikeys.usage WHERE subject_id = '$id'");
}

sub replace_worker
{
	my $pid = sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'apikeys worker'));

	sql("SELECT pg_terminate_backend($pid, 60000)");
	return;
}

build_clock();
ok(start_with_clock($node), 'a server with a clock of its own starts');
install($node);
is_ahead_by(0, 'as it is');

# A user's days begin an hour ago, so that none begins while the test runs.
sql(q(
	SELECT apikey_plan_create('Daily', 5, 'day', plan_id => 'daily');
	SELECT apikey_plan_create('Daily', 1000, 'day', plan_id => 'many');
	SELECT apikey_user_create(u, plan_id => 'daily', custom_start => now() - interval '1 hour')
	  FROM unnest('{quota,other}'::text[]) u));
(undef, $unlimited) = issue($node, 'postgres', q('unlimited'));
my ($quota_id, $quota) = issue($node, 'postgres', q('quota', 'quota'));
my ($many_id, $many) = issue($node, 'postgres', q('many', plan_id => 'many'));
my ($slow_id, $slow) = issue($node, 'postgres', q('slow'));
my ($fast_id, $fast) = issue($node, 'postgres', q('fast'));
my ($mark_id, $mark) = issue($node, 'postgres', q('mark'));
my ($expiring_id, $expiring) =
  issue($node, 'postgres', q('expiring', expires_at => now() + interval '12 hours'));
my ($deleted_id, $deleted) =
  issue($node, 'postgres', q('deleted', expires_at => now() + interval '12 hours'));
sql("SELECT apikey_limit_set('slow', 2, '1 hour', key_id => '$slow_id');
	 SELECT apikey_limit_set('fast', 10, '1 s', burst => 2, key_id => '$fast_id');
	 SELECT apikey_limit_set('mark', 1, '3 s', key_id => '$mark_id')");

my ($paid_id, $paid) =
  issue($node, 'postgres', q('paid', refill_amount => 5, refill_every => '24 hours'));

sub period_start { return sql("SELECT period_start FROM apikey_usage('$quota_id')") }

my $today = period_start();
is(verify_times($node, 'postgres', $quota, 10), 5, 'today\'s quota');
is(verify_times($node, 'postgres', $slow, 10), 2, 'a rate');
is(verify_times($node, 'postgres', $paid, 10), 5, 'credits');
is(verify($node, 'postgres', $_), 'VALID', 'a key that expires today')
  foreach ($expiring, $deleted);
flushes('before');

# ----- A day ahead -----

set_clock($day);
is_ahead_by(1, 'a day ahead');
is(verify_times($node, 'postgres', $quota, 3), 3, 'a new period begins');
is( sql("SELECT period_start - '$today' FROM apikey_usage('$quota_id')"),
	'1 day', 'tomorrow\'s');
is(verify_times($node, 'postgres', $slow, 10), 2, 'a rate is full again');
is(verify_times($node, 'postgres', $paid, 3), 3, 'credits refill');
is(verify_times($node, 'postgres', $fast, 2), 2, 'a fast one is used');
is(verify($node, 'postgres', $expiring), 'EXPIRED', 'an expired key is refused');
flushes('a day ahead');
sweeps('a day ahead');
is( sql("SELECT deleted_at IS NOT NULL FROM apikeys.keys WHERE id = '$expiring_id'"),
	't', 'the expired one among them');
sql("DELETE FROM apikeys.keys WHERE id = '$deleted_id'");
replace_worker();
flushes('by another worker');

# ----- And back -----

my $tomorrow = period_start();
is(verify_times($node, 'postgres', $fast, 2), 2, 'a fast rate is used');
set_clock(0);
is_ahead_by(0, 'back');
is(period_start(), $tomorrow, 'the period does not go back');
is(verify_times($node, 'postgres', $quota, 10), 2, 'what is left of it is admitted');
is(verify($node, 'postgres', $quota), 'USAGE_EXCEEDED', 'and no more');
is(verify_times($node, 'postgres', $paid, 10), 2, 'credits keep what is left');
is(verify($node, 'postgres', $expiring), 'EXPIRED', 'a key that was swept stays so');
is(verify($node, 'postgres', $deleted), 'EXPIRED', 'and one that was deleted after its expiry');
isnt(sql("SELECT status FROM apikey_whoami('$deleted')"), 'active', 'also to whoami');
is( sql("SELECT code, retry_after BETWEEN '1 minute' AND '30 minutes' FROM apikey_verify('$slow')"),
	'RATE_LIMITED|t', 'a rate that was used up is so once more, and not for a day');
ok(recovers($fast), 'a fast one recovers');
flushes('after the jump back');
sweeps('after the jump back');
ok(written($many, 100, $many_id), 'counts are written after the jump back');
replace_worker();
flushes('by another worker after the jump back');

# ----- Waiting while the clock jumps -----

# A client that waits for a ceiling, which the worker cannot commit.
sub wait_for_ceiling
{
	my ($name, $timeout) = @_;
	my (undef, $secret) =
	  issue($node, 'postgres', "'$name', '$name', 'daily'");

	$node->append_conf('postgresql.conf', "apikeys.meter_timeout = '$timeout'");
	$node->reload;
	my $lock = $node->background_psql('postgres');
	$lock->query_safe('BEGIN; LOCK TABLE apikeys.usage IN SHARE MODE');
	my %run = (lock => $lock, out => '', err => '', since => time);
	$run{handle} = IPC::Run::start(
		[
			'psql', '-XAtq', '-d', $node->connstr('postgres'),
			'-c', "/* $name */ SELECT code FROM apikey_verify('$secret')"
		],
		'<', \undef, '>', \$run{out}, '2>', \$run{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	ok( $node->poll_query_until(
			'postgres', qq(
			SELECT count(*) = 1 FROM pg_stat_activity
			 WHERE query LIKE '/* $name */%' AND wait_event_type = 'Extension')),
		"a client waits for a ceiling ($name)");
	return \%run;
}

# Waits for the client, but not for ever, and ends what it waited for.
sub client_ends
{
	my ($run) = @_;
	my $ended = eval { $run->{handle}->finish; 1 };

	$run->{handle}->kill_kill if !$ended;
	return $ended;
}

# The flush wakes who waits: then it looks at the clock.
my $run = wait_for_ceiling('ahead', '60s');
set_clock($day);
flushes('while a client waits');
flushes('and again');
$run->{lock}->query_safe('COMMIT');
ok(client_ends($run), 'the client has its answer');
is($run->{out}, "VALID\n", 'a jump ahead does not end the wait');
is($run->{err}, '', 'with an error');
$run->{lock}->quit;

$run = wait_for_ceiling('back', '8s');
set_clock(0);
ok(client_ends($run), 'the client has an answer');
cmp_ok(time - $run->{since}, '<', 30, 'a jump back does not make it last');
like($run->{err}, qr/could not admit the request within 8000 ms/, 'it ends with an error');
$run->{lock}->query_safe('COMMIT');
$run->{lock}->quit;
$node->append_conf('postgresql.conf', "apikeys.meter_timeout = '60s'");
$node->reload;

# ----- A crash after the clock was set back -----

# Of what an idle key used right before the crash no row tells, and its last
# row is a day younger than the crash. It counts all the same.
sql("SELECT apikey_plan_create('Wide', 6400, 'year', plan_id => 'wide')");
my ($wide_id, $wide) = issue($node, 'postgres', q('wide', plan_id => 'wide'));
set_clock($day);
ok(written($wide, 2, $wide_id), 'a count is written a day ahead');
flushes('after it');
flushes('and again');
set_clock(0);
$node->append_conf('postgresql.conf', "apikeys.flush_interval = '60s'");
$node->stop;
ok(start_with_clock($node), 'a clean restart');
is(verify($node, 'postgres', $many), 'VALID', 'the worker starts');
ok( $node->poll_query_until(
		'postgres', q(
		SELECT count(*) = 1 FROM pg_stat_activity
		 WHERE backend_type = 'apikeys worker' AND state = 'idle')),
	'and has written what it had to');
is(verify_times($node, 'postgres', $wide, 40), 40, 'an idle key is used');
is( sql("SELECT sum(current_usage) FROM apikeys.usage WHERE subject_id = '$wide_id'"),
	2, 'of which no row tells');
$node->stop('immediate');
ok(start_with_clock($node), 'the server starts after a crash');
cmp_ok(verify_times($node, 'postgres', $wide, 6500),
	'<=', 6400 - 42, 'no more than the limit is admitted');
$node->append_conf('postgresql.conf', "apikeys.flush_interval = '50ms'");
$node->reload;

# ----- Between two runs -----

# Rates are taken down with the server, a day ahead of what the clock then is.
set_clock($day);
ok(recovers($mark), 'a rate is used');
$node->stop;
set_clock(0);
ok(start_with_clock($node), 'the server starts a day earlier');
is(period_start(), $today, 'today once more');
is(verify_times($node, 'postgres', $quota, 10), 0, 'whose quota is used up');
ok(recovers($mark), 'a rate that was used a day ahead recovers');

$node->stop;
set_clock(-$day);
ok(start_with_clock($node), 'the server starts yesterday');
is(verify_times($node, 'postgres', $quota, 10), 5, 'yesterday has its quota, once');
flushes('yesterday');
ok( $node->poll_query_until(
		'postgres', q(
		SELECT min(current_usage) = 5 FROM apikeys.usage u JOIN apikeys.users s USING (subject_id)
		 WHERE s.id = 'quota')),
	'and so is the count');
set_clock(0);
is(verify_times($node, 'postgres', $quota, 10), 0, 'today is used up');
set_clock($day);
is(verify_times($node, 'postgres', $quota, 10), 0, 'and so is tomorrow');
is(verify_times($node, 'postgres', $paid, 10), 0, 'whose refill has come already');
$node->stop('immediate');
set_clock(-$day);
ok(start_with_clock($node), 'after a crash, yesterday again');
is(verify_times($node, 'postgres', $quota, 10), 0, 'which is used up');
flushes('after all of that');
is( sql(q(SELECT string_agg(current_usage::text, ' ' ORDER BY period_start)
		    FROM apikeys.usage u JOIN apikeys.users s USING (subject_id) WHERE s.id = 'quota')),
	'5 5 5', 'no period has admitted more than its quota');
is( sql("SELECT string_agg(amount::text, ' ') FROM apikeys.ledger WHERE subject_id = '$paid_id' AND operation = 'refill'"),
	'5', 'and credits were refilled once');

$node->stop;
done_testing();
