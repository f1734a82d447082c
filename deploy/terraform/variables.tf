variable "prefix" {
  description = "Begins the names of tables and queues, as in --store aws://PREFIX: 2 to 24 lower-case letters, digits, hyphens."
  type        = string
  default     = "w3filecoin"
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,23}$", var.prefix))
    error_message = "The prefix is 2 to 24 lower-case letters, digits and hyphens."
  }
}

variable "bucket" {
  description = "Bucket of the larger blobs and of uploads, as in --store aws://PREFIX?bucket=BUCKET."
  type        = string
}

variable "upload_origins" {
  description = "Origins of web pages that upload content, like https://app.example: browsers may put it into the bucket from there."
  type        = list(string)
  default     = []
}

variable "alarm_actions" {
  description = "ARNs that alarms notify."
  type        = list(string)
  default     = []
}

variable "oldest_message" {
  description = "Age in seconds of a queue's oldest message from which on somebody should look. SQS forgets messages after 14 days."
  type        = number
  default     = 86400
}
