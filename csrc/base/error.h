// The one exception of the core. The message is one sentence (what, where, what to do); it reaches Python as
// edgeprune.EdgePruneError.
#pragma once

#include <stdexcept>
#include <string>

namespace edgeprune {

class Error : public std::runtime_error {
  public:
    explicit Error(const std::string& sentence) : std::runtime_error(sentence) {}
};

// Throws Error with a printf-style message.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace edgeprune
