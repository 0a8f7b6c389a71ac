// The code of an artifact in this process.
#pragma once

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "runtime/opcel.h"

namespace opcel::bindings {

/// The code of an artifact, loaded once however often the artifact is opened.
///
/// The loader takes a library that it has seen under some path for the same one, also when an artifact has taken the
/// place of another that is still open. So it is given the name of a descriptor that stays open as long as the library.
class Library {
 public:
  static std::shared_ptr<Library> open(const std::string& artifact) {
    static auto* mutex = new std::mutex;
    static auto* known = new std::map<std::pair<dev_t, ino_t>, std::weak_ptr<Library>>;
    const std::lock_guard<std::mutex> lock(*mutex);
    struct stat facts {};
    if (stat((artifact + "/model.so").c_str(), &facts) == 0) {
      if (std::shared_ptr<Library> found = (*known)[{facts.st_dev, facts.st_ino}].lock()) return found;
    }
    auto library = std::make_shared<Library>(artifact);
    (*known)[{facts.st_dev, facts.st_ino}] = library;
    return library;
  }

  explicit Library(const std::string& artifact) : folder_(::open(artifact.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)) {
    char error[1024] = "";
    const std::string name = folder_ < 0 ? artifact : "/proc/self/fd/" + std::to_string(folder_);
    api_ = opcel_load(name.c_str(), &handle_, error, sizeof error);
    if (!api_) reason_ = error;
  }
  Library(const Library&) = delete;
  ~Library() {
    if (handle_) dlclose(handle_);
    if (folder_ >= 0) ::close(folder_);
  }

  /// Null when it could not be loaded; reason() then says why.
  const opcel_api* api() const { return api_; }
  const std::string& reason() const { return reason_; }

 private:
  int folder_;
  void* handle_ = nullptr;
  const opcel_api* api_ = nullptr;
  std::string reason_;
};

}  // namespace opcel::bindings
