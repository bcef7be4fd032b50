#include "guard/dispatches.h"

#include <optional>
#include <utility>

#include "base/error.h"

namespace ringdp {

Dispatches::Dispatches(Transport& transport, std::vector<Tag> tags, size_t most)
    : transport_(transport), tags_(std::move(tags)), most_(most) {}

void Dispatches::send(int to, Tag tag, std::vector<std::byte> data) {
  sending_.push_back({{}, std::move(data)});
  Sending& one = sending_.back();
  try {
    one.request = transport_.send(to, tag, one.data.data(), one.data.size());
  } catch (const Error&) {
    sending_.pop_back();
  }
}

bool Dispatches::all_sent() {
  sending_.remove_if([this](Sending& one) {
    try {
      return transport_.test(one.request);
    } catch (const Error&) {
      return true;
    }
  });
  return sending_.empty();
}

void Dispatches::receive(Tag tag) {
  size_t bytes = 0;
  for (int from = 0; (from = transport_.arrived(tag, &bytes)) >= 0;) {
    if (bytes > most_) fail(ErrorKind::transport, "rank ", from, " sent a dispatch of ", bytes, " bytes");
    receiving_.push_back({{}, {from, tag, std::vector<std::byte>(bytes)}});
    Receiving& one = receiving_.back();
    try {
      one.request = transport_.receive(from, tag, one.dispatch.data.data(), bytes);
    } catch (const Error&) {
      receiving_.pop_back();
      throw;
    }
  }
}

std::vector<Dispatches::Dispatch> Dispatches::take() {
  all_sent();
  std::optional<Error> error;  // where a rank is lost: others may have told of it
  for (const Tag tag : tags_) {
    try {
      receive(tag);
    } catch (const Error& one) {
      error = one;
    }
  }
  if (error && receiving_.empty()) throw *error;
  std::vector<Dispatch> come;
  for (auto it = receiving_.begin(); it != receiving_.end();) {
    const auto one = it++;
    try {
      if (!transport_.test(one->request)) continue;
      come.push_back(std::move(one->dispatch));
    } catch (const Error&) {  // who has sent it is gone
    }
    receiving_.erase(one);
  }
  return come;
}

}  // namespace ringdp
