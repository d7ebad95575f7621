// What a user can cause and mend: Python gets it as speq.SpeqError, with one clear line.
#pragma once
#include <stdexcept>
#include <string>
#include <system_error>

namespace speq {

struct UserError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The system started fewer threads than were wanted; both counts include the calling one.
inline UserError too_many_threads(size_t wanted, size_t started, const std::system_error& error) {
    return UserError("only " + std::to_string(started) + " of " + std::to_string(wanted) +
                     " threads could be started (" + error.code().message() +
                     "): use fewer with --threads, or raise the system's limit");
}

}  // namespace speq
