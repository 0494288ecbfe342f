/** @file supervise.h
 *  What a process and the supervisor of its command share. Local. */
#ifndef NPS_FITNESS_SUPERVISE_H
#define NPS_FITNESS_SUPERVISE_H

/** argv[0] of a supervisor; then the folder to be removed, or "", and the command. */
#define NPS_SUPERVISOR "nps-command-supervisor"

/** Its files: 0, 1 and 2 are the command's; 3 is a socket. On it comes an int, the command's status as of wait(), when the command
 *  has ended; a byte sent to it tells it to end the command and itself. */
enum { NPS_SUPERVISOR_SOCKET = 3 };

/** Remove a folder and all in it. Local. */
void nps_folder_remove(const char *path);

#endif
