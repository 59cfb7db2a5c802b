# What an update leaves behind, against a fresh installation.

package UpgradeTest;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(catalog differences same_catalog);

# All that the catalogs say about the extension: a hash of facts. The change,
# SQL, is made before and undone after.
sub catalog
{
	my ($node, $database, $change) = @_;
	my $query = slurp_file("$FindBin::RealBin/../upgrade/catalog.sql");
	my %facts;

	$change = 'SELECT' unless defined $change;
	my $text = $node->safe_psql($database,
		"\\set QUIET on\nBEGIN;\n\\o /dev/null\n$change;\n\\o\n$query\nROLLBACK;\n");
	foreach my $line (split /\n/, $text)
	{
		my ($about, $value) = split /\t/, $line, 2;
		die "no fact: $line" unless defined $value;
		die "two facts: $about" if exists $facts{$about};
		$value =~ s/\\(.)/$1 eq 'n' ? "\n" : $1/ge;
		$facts{$about} = $value;
	}
	return \%facts;
}

# The first line of each that the other has not at its place.
sub _first_difference
{
	my @lines = map { [ split /\n/, $_, -1 ] } @_;
	my $at = 0;

	$at++
	  while $at < @{ $lines[0] }
	  && $at < @{ $lines[1] }
	  && $lines[0][$at] eq $lines[1][$at];
	return ($at + 1, map { defined $_->[$at] ? $_->[$at] : '(end)' } @lines);
}

# How the second catalog differs from the first, in both directions; in words,
# a line each.
sub differences
{
	my ($fresh, $updated) = @_;
	my @differences;
	my %both = (%$fresh, %$updated);

	foreach my $about (sort keys %both)
	{
		my ($want, $got) = ($fresh->{$about}, $updated->{$about});
		if (!defined $got)
		{
			push @differences, "only in a fresh one: $about: $want";
		}
		elsif (!defined $want)
		{
			push @differences, "only in the updated one: $about: $got";
		}
		elsif ($want ne $got)
		{
			my ($line, $a, $b) = _first_difference($want, $got);
			my $where = "$want$got" =~ /\n/ ? " (line $line)" : '';
			push @differences,
			  "differs: $about$where\n    fresh:   $a\n    updated: $b";
		}
	}
	return @differences;
}

# Tests that there is none.
sub same_catalog
{
	my ($fresh, $updated, $name) = @_;
	my @differences = differences($fresh, $updated);

	ok(!@differences, $name) or diag(join "\n", @differences);
	return;
}

1;
