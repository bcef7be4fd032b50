#include "submit/differences.h"

#include <algorithm>
#include <map>
#include <sstream>

namespace ringdp {

namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::string ranks_text(const std::vector<int>& ranks) {
  constexpr size_t kMost = 8;
  std::ostringstream out;
  out << (ranks.size() == 1 ? "rank " : "ranks ");
  for (size_t i = 0; i < std::min(ranks.size(), kMost); ++i) out << (i ? ", " : "") << ranks[i];
  if (ranks.size() > kMost) out << " and " << ranks.size() - kMost << " more";
  return out.str();
}

}  // namespace

std::string differences(const std::vector<std::string>& descriptions, const std::vector<int>& names) {
  std::vector<std::vector<std::string>> of_rank;
  for (const std::string& description : descriptions) of_rank.push_back(lines_of(description));
  const auto line = [&](size_t rank, size_t i) {
    return i < of_rank[rank].size() ? of_rank[rank][i] : std::string("(nothing more)");
  };
  size_t longest = 0, differs = 0;
  for (const auto& lines : of_rank) longest = std::max(longest, lines.size());
  const auto same = [&](size_t i) {
    for (size_t r = 1; r < of_rank.size(); ++r)
      if (line(r, i) != line(0, i)) return false;
    return true;
  };
  while (differs < longest && same(differs)) ++differs;
  std::map<std::string, std::vector<int>> groups;
  for (size_t r = 0; r < of_rank.size(); ++r) groups[line(r, differs)].push_back(names[r]);
  std::ostringstream out;
  for (const auto& [what, ranks] : groups) out << "\n  " << ranks_text(ranks) << ": " << what;
  return out.str();
}

}  // namespace ringdp
