# Reservations from many clients: what is settled is what is charged, once; what
# is held outlives a restart, and stays charged in a crash.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $clients = 32;
my $node = new_server(
	'main',
	'max_connections' => $clients + 20,
	'apikeys.meter_timeout' => '60s',
	'apikeys.history_wait_timeout' => '60s');
$node->start;
install($node);
my $dir = PostgreSQL::Test::Utils::tempdir;

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

sub reserve
{
	my ($secret, $cost, $ttl) = @_;
	$ttl = '10 minutes' unless defined $ttl;
	return sql("SELECT reservation_id FROM apikey_reserve('$secret', $cost, '$ttl')");
}

sub settle
{
	my ($id, $cost) = @_;
	my ($code, $out, $err) =
	  $node->psql('postgres', "SELECT current_usage FROM apikey_settle('$id', $cost)");
	return $code == 0 ? $out : $err;
}

# ----- Many reserve and settle at once -----

sql(q(
	SELECT apikey_plan_create('Plan', 1500, 'year', plan_id => 'plan');
	SELECT apikey_limit_set('tokens', 1500, '1500 days', plan_id => 'plan');
	SELECT apikey_user_create('alice', plan_id => 'plan');
	SELECT apikey_user_credits('alice', 'set', 1400)));
my ($id, $one) = issue($node, 'postgres', q('one', 'alice'));
my (undef, $two) = issue($node, 'postgres', q('two', 'alice'));
my @scripts = map { "$dir/$_.sql" } 1 .. $clients;
foreach my $client (1 .. $clients)
{
	foreach my $n (1 .. 30)
	{
		my $secret = ($client + $n) % 2 ? $one : $two;
		my $max = 5 + ($client * 3 + $n) % 11;
		my $used = ($client + $n * 7) % ($max + 1);
		append_to_file($scripts[ $client - 1 ],
			"SELECT code, reservation_id AS held, valid FROM apikey_reserve('$secret', $max) \\gset\n"
			  . "\\if :valid\n"
			  . "SELECT 'USED', $used, code FROM apikey_settle(:'held', $used);\n"
			  . "\\endif\n");
	}
}
race($node, 'reservations', @scripts);
my ($told, $times) = (0, 0);
foreach my $script (@scripts)
{
	foreach (slurp_file("$script.out") =~ /^USED\|(\d+)\|VALID$/mg)
	{
		$told += $_;
		$times++;
	}
}
cmp_ok($times, '>', 100, "$times were admitted and settled");
cmp_ok($told, '<=', 1400, 'no limit is exceeded');
is(usage($node, 'postgres', $id), $told, "what is charged is what was settled ($told)");
is( sql(qq(SELECT string_agg(format('%s=%s', l ->> 'name', l ->> 'remaining'), ' ' ORDER BY l ->> 'name')
	         FROM apikey_usage('$id'), jsonb_array_elements(limits) l)),
	sprintf('credits=%d quota=%d tokens=%d', 1400 - $told, 1500 - $told, 1500 - $told),
	'of every limit');
ok( $node->poll_query_until(
		'postgres', "SELECT sum(cost) = $told FROM apikeys.requests WHERE status = 'allowed'"),
	'and the history adds up to it');

# ----- One settlement, whoever comes first -----

my ($own_id, $own) = issue($node, 'postgres', q('own', credits => 1000));
my $contended = reserve($own, 100);
my @settlers = map { "$dir/settle$_.sql" } 1 .. 8;
append_to_file($_, "\\set ON_ERROR_STOP off\nSELECT 'SETTLED' FROM apikey_settle('$contended', 10);\n")
  foreach @settlers;
race($node, 'one settlement', @settlers);
is(codes(map { "$_.out" } @settlers)->{SETTLED}, 1, 'one of them settles');
is(usage($node, 'postgres', $own_id), 10, 'and it is charged once');

# ----- Many that nobody settles -----

my ($many_id, $many) = issue($node, 'postgres', q('many', credits => 1000));
is( sql(qq(SELECT count((apikey_reserve('$many', 5, '1 second')).reservation_id) FROM generate_series(1, 200))),
	'200', 'many are reserved');
ok( $node->poll_query_until(
		'postgres', qq(
		SELECT count(*) = 200 AND sum(cost) = -1000 FROM apikeys.requests
		 WHERE key_id = '$many_id' AND code = 'RELEASED')),
	'and are all given back at their deadline');
is(usage($node, 'postgres', $many_id), 0, 'so nothing is charged');

# ----- What a rate has healed meanwhile is not given back once more -----

sql(q(SELECT apikey_plan_create('Rated', plan_id => 'rated');
	  SELECT apikey_limit_set('rate', 20, '2 seconds', plan_id => 'rated')));
my ($rated_id, $rated) = issue($node, 'postgres', q('rated', plan_id => 'rated'));
my $left = qq(SELECT (l ->> 'remaining')::int FROM apikey_usage('$rated_id'), jsonb_array_elements(limits) l
	           WHERE l ->> 'name' = 'rate');
my $healed = reserve($rated, 20);
ok($node->poll_query_until('postgres', "SELECT ($left) = 20"), 'a rate fills again');
my $began = time;
is( sql(qq(SELECT code FROM apikey_verify('$rated', cost => 20))),
	'VALID', 'and is used up');
settle($healed, 0);
my $filled = sql($left);

# It fills by itself meanwhile, by ten a second.
cmp_ok($filled, '<=', 10 * (time - $began) + 1, 'what was reserved before does not fill it');

# ----- Acknowledged is durable; held is charged -----

my $held = reserve($own, 200);
my $settled = reserve($own, 300);
is(settle($settled, 5), 10 + 200 + 5, 'one is settled, one is held');
$node->stop('immediate');
ok(start_again($node), 'a crash');
my $after = usage($node, 'postgres', $own_id);
is($after, 215, 'what was settled stays so, what was held is charged');
like(settle($held, 1), qr/does not exist/, 'and cannot be settled any more');
is(usage($node, 'postgres', $own_id), $after, 'nothing has changed');

# ----- A restart -----

$held = reserve($own, 100);
my $due = reserve($own, 50, '5 seconds');
my $ended = reserve($own, 10);
settle($ended, 10);

# Rows that somebody has written, or that a dump brings, are taken for none.
sql(q(
	INSERT INTO apikeys.reservation_marks
	SELECT r.id, n.n, r.id, m.max_cost, now(), now(), CASE m.subjects WHEN 1 THEN r.id ELSE gen_random_uuid() END,
	       false, m.period, 0, 1, m.emission, 0
	  FROM (VALUES ('{-300000}'::int[], 2, 1, 1, 0), ('{-1}', 2, 1, 1, 0), ('{-1,1}', 2, 1, 1, 0), ('{1}', 2, 1, 1, 0),
	               ('{0,1,2,3,4,5,6,7,8}', 2, 1, 1, 0), ('{0}', 200, 1, 1, 0), ('{0}', 254, 1, 1, 0), ('{0}', -1, 1, 1, 0),
	               ('{0}', 2, -1, 1, 0), ('{0}', 2, 1, 1, -1), ('{0,1,2}', 2, 1, 3, 0)) m(places, period, max_cost, subjects, emission),
	       LATERAL (SELECT gen_random_uuid() AS id OFFSET length(m.places::text) * 0) r,
	       unnest(m.places) n));
my $before_restart = -s $node->logfile;
$node->restart;
is(usage($node, 'postgres', $own_id) - $after >= 110, 1, 'what is held outlives a restart');
settle(reserve($own, 1), 0);
my $since = substr(slurp_file($node->logfile), $before_restart);
unlike($since, qr/was terminated by signal/, 'rows that cannot be end no process');
my %damaged = map { $_ => 1 } $since =~ /What reservation "([^"]*)" holds stays charged/g;
is(scalar keys %damaged, 11, 'the log tells of each reservation');

# The other one may end meanwhile.
my $still_held = 'SELECT coalesce(sum(max_cost), 0) FROM apikeys.reservations';
my $held_before = sql($still_held) - 100;
my $usage_then = settle($held, 30);
my %usages = map { $after + 40 + $_ => 1 } $held_before, sql($still_held);
ok($usages{$usage_then}, 'and can be settled');
ok( $node->poll_query_until(
		'postgres',
		"SELECT current_usage = $after + 40 FROM apikey_usage('$own_id')"),
	'or is given back at its deadline');
like(settle($due, 1), qr/has ended/, 'after which it cannot be settled');
is(sql('SELECT count(*) FROM apikeys.reservation_marks'), '0', 'their marks are taken back');

# ----- The worker stays while something is held, and comes back after a crash of its own -----

$held = reserve($own, 7, '1 minute');
is( sql(q(
		SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
		 WHERE backend_type = 'apikeys worker')),
	't', 'the worker is terminated');
is(settle($held, 7), $after + 47, 'what was held is settled by the next one');

# ----- A copy of the database holds its own -----

my (undef, $any) = issue($node, 'postgres', q('any'));
$held = reserve($own, 20);
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
is(verify($node, 'copy', $any), 'VALID', 'a copy is verified with first');
is( $node->safe_psql('copy', 'SELECT id FROM apikeys.reservations'),
	$held, 'it holds what was held');
is(settle($held, 1), $after + 48, 'so does the database itself');
is( $node->safe_psql('copy', "SELECT current_usage FROM apikey_settle('$held', 2)"),
	$after + 49, 'each settles its own');
$node->safe_psql('postgres', 'DROP DATABASE copy');

# ----- Who cannot finish leaves it as it was -----

# Counts are not in memory after a restart, and cannot be read.
sub lock_usage
{
	my ($mode) = @_;
	my $session = $node->background_psql('postgres');
	$session->query_safe("BEGIN; LOCK TABLE apikeys.usage IN $mode MODE");
	return $session;
}

sub unlock
{
	my ($session) = @_;
	$session->query_safe('COMMIT');
	$session->quit;
	return;
}

sub in_background
{
	my ($command) = @_;
	my $out = '';
	return IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $command ],
		'<', \undef, '>', \$out, '2>&1');
}

# Waits until the worker could not do something so many times.
sub worker_fails
{
	my ($from, $times) = @_;
	return until_true(
		sub {
			my @failures = slurp_file($node->logfile, $from) =~ /canceling statement due to lock timeout/g;
			return @failures >= $times;
		});
}

$held = reserve($own, 20);
$due = reserve($own, 10, '2 seconds');
$node->restart;
my $blocker = lock_usage('ACCESS EXCLUSIVE');
my $log = -s $node->logfile;
my $settling = in_background("SELECT apikey_settle('$held', 5)");
ok( $node->poll_query_until(
		'postgres', q(
		SELECT count(*) > 0 FROM pg_stat_activity
		 WHERE query LIKE 'SELECT apikey_settle%' AND wait_event_type = 'Lock')),
	'a settlement waits');
sql(q(SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE query LIKE 'SELECT apikey_settle%'));
$settling->finish;
ok(worker_fails($log, 2), 'so does a release, and fails');
unlock($blocker);
is(settle($held, 5) - ($after + 48) >= 5, 1, 'what was to be settled can be');
ok( $node->poll_query_until(
		'postgres', "SELECT current_usage = $after + 53 FROM apikey_usage('$own_id')"),
	'and what was to be released is');

# A deadline that passes before anything is charged.
my ($short_id, $short) = issue($node, 'postgres', q('short', credits => 10));
$blocker = lock_usage('SHARE');
$log = -s $node->logfile;
my $reserving = in_background("SELECT apikey_reserve('$short', 5, '1 millisecond')");
ok(worker_fails($log, 3), 'a reservation waits beyond its deadline');
unlock($blocker);
$reserving->finish;
ok( $node->poll_query_until(
		'postgres', "SELECT credits = 10 AND current_usage = 0 FROM apikey_usage('$short_id')"),
	'and is given back');

# Settled in memory, but the client does not wait until that is durable.
$held = reserve($short, 5);
$blocker = lock_usage('SHARE');
(undef, undef, my $cancelled) =
  $node->psql('postgres', "SET statement_timeout = '3s'; SELECT apikey_settle('$held', 1)");
like($cancelled, qr/canceling statement due to statement timeout/, 'a settlement is cancelled');
unlock($blocker);
is(usage($node, 'postgres', $short_id), 1, 'which is too late');
like(settle($held, 1), qr/is settled already/, 'and told');
ok( $node->poll_query_until(
		'postgres', "SELECT sum(cost) = 1 FROM apikeys.requests WHERE key_id = '$short_id' AND status = 'allowed'"),
	'the history adds up to it');

# ----- No burst twice, however much was reserved before -----

sql(q(SELECT apikey_plan_create('Burst', plan_id => 'burst');
	  SELECT apikey_limit_set('rate', 20, '1 second', plan_id => 'burst')));
my ($burst_id, $burst) = issue($node, 'postgres', q('burst', plan_id => 'burst'));
my $full = qq(SELECT (l ->> 'remaining')::int = 20 FROM apikey_usage('$burst_id'), jsonb_array_elements(limits) l
	           WHERE l ->> 'name' = 'rate');
my @before;
foreach (1 .. 3)
{
	push @before, reserve($burst, 20);
	ok($node->poll_query_until('postgres', $full), 'a rate fills again');
}
$began = time;
my $codes = $node->safe_psql('postgres', join ';',
	"SELECT code FROM apikey_reserve('$burst', 20, '1 second')",
	map { "SELECT code FROM apikey_settle('$_', 0); SELECT code FROM apikey_reserve('$burst', 20, '1 second')" } @before);
my @admitted = $codes =~ /VALID/g;
my $seconds = time - $began;
my $bursts = @admitted - @before;
ok($bursts >= 1 && $bursts <= 1 + 2 * int($seconds),
	"what was reserved long ago is no burst to use again ($bursts in $seconds s)");

# But what is still to come of it, behind what others have used, is given back.
sql(q(SELECT apikey_plan_create('Slow', plan_id => 'slow');
	  SELECT apikey_limit_set('rate', 100, '10 seconds', plan_id => 'slow')));
my ($slow_id, $slow) = issue($node, 'postgres', q('slow', plan_id => 'slow'));
$left = qq(SELECT (l ->> 'remaining')::int FROM apikey_usage('$slow_id'), jsonb_array_elements(limits) l
	       WHERE l ->> 'name' = 'rate');
is(sql("SELECT code FROM apikey_verify('$slow', cost => 75)"), 'VALID', 'most is used');
$held = reserve($slow, 10);
ok($node->poll_query_until('postgres', "SELECT ($left) BETWEEN 28 AND 80"), 'and more than is held fills again');
my ($with, $without) = split /\n/, sql("$left; SELECT FROM apikey_settle('$held', 0); $left") =~ s/\n\n/\n/r;
cmp_ok($without, '>=', $with + 10, 'what is held is given back nonetheless');

# Nor is it given back twice, by way of what was given back of another one.
my ($both_id, $both) = issue($node, 'postgres', q('both', plan_id => 'slow'));
$left =~ s/$slow_id/$both_id/;
my $large = reserve($both, 80);
my $small = reserve($both, 10);
settle($large, 0);
ok($node->poll_query_until('postgres', "SELECT ($left) = 100"), 'all has filled again');
$began = time;
is(sql("SELECT code FROM apikey_verify('$both', cost => 40)"), 'VALID', 'some is used');
settle($small, 0);
$filled = sql($left);
cmp_ok($filled, '<=', 61 + 10 * (time - $began), 'and is not given back for what was held before');
ok( $node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM apikeys.reservations'),
	'nothing is held any more');

# ----- Another database's is none of ours -----

$node->safe_psql('postgres', 'CREATE DATABASE other');
install($node, 'other');
my $foreign = reserve($own, 3);
my (undef, undef, $refusal) =
  $node->psql('other', "SELECT apikey_settle('$foreign', 1)");
like($refusal, qr/does not exist/, 'a reservation of another database is not settled');
is(sql(qq(SELECT count(*) FROM apikeys.reservations WHERE id = '$foreign')), 1, 'but still held');
settle($foreign, 0);

# ----- A full table refuses, and says so -----

$node->append_conf('postgresql.conf', 'apikeys.max_reservations = 10');
$node->restart;
is( sql(qq(SELECT count(*) FROM generate_series(1, 10) n WHERE (apikey_reserve('$own', 1)).valid)),
	10, 'as many as there is room for');
my (undef, undef, $err) = $node->psql('postgres', "SELECT apikey_reserve('$own', 1)");
like($err, qr/too many reservations are held/, 'one more is refused');
is(usage($node, 'postgres', $own_id), $after + 63, 'and not charged');

# What would not be charged is decided all the same.
sub refused
{
	my ($code, $secret) = @_;
	is(sql("SELECT code, reservation_id FROM apikey_reserve('$secret', 1)"),
		"$code|", "$code needs no place");
	return;
}
refused('MALFORMED', 'nonsense');
my ($gone_id, $gone) = issue($node, 'postgres', q('gone'));
sql("SELECT apikey_update('$gone_id', '{\"enabled\": false}')");
refused('DISABLED', $gone);
sql("SELECT apikey_delete('$gone_id')");
refused('NOT_FOUND', $gone);

# What ended first makes room, and is not known any more.
my ($first, $second) = split /\n/, sql('SELECT id FROM apikeys.reservations LIMIT 2');
settle($second, 0);
settle($first, 0);
like(settle($_, 0), qr/is settled already/, 'what was settled is known as such') foreach $first, $second;
$held = reserve($own, 1);
like($held, qr/^\S{36}$/, 'there is a place again');
like(settle($second, 0), qr/does not exist/, 'it was that of the one that was settled first');
like(settle($first, 0), qr/is settled already/, 'the other one is known');
like(reserve($own, 1), qr/^\S{36}$/, 'and has the other place');
(undef, undef, $err) = $node->psql('postgres', "SELECT apikey_reserve('$own', 1)");
like($err, qr/too many reservations are held/, 'then the table is full again');

$node->stop;
done_testing();
